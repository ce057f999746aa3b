"""Files and texts of ours that come back broken: nested too deep, cut off, of another kind, hidden or taken away."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kumadp.accesslog.component import AccessLogs
from kumadp.bootstrap.admin_address import TcpAdmin, UnixAdmin, parse_admin
from kumadp.controlplane.source_file import read_source
from kumadp.core.previous import SECTION
from kumadp.daemon.adoption import forget, previous_in, tidy
from kumadp.daemon.reexec import decode_daemon_section
from kumadp.errors import HandoverFailed
from kumadp.host import process_identity as identity
from kumadp.host.private_file import write_json, write_private
from kumadp.host.reexec import handover, interim_responder
from kumadp.host.reexec.handover import Handover
from kumadp.host.state_file import FORMAT, StateFile, read_state
from kumadp.host.work_dir import SOURCE_FILE, STATE_FILE
from kumadp.relay.last_good import FILE, MAGIC, Binding, LastGoodStore
from tests.support.loaded_rig import open_loaded_rig
from tests.support.poll import poll_async
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from pathlib import Path

DEPTH = 100_000
DEEP = b"[" * DEPTH
DEEP_OBJECT = b'{"a":' * DEPTH
STATE = b'{"format":%d,"boot":"x","pid":1,"start_time":1,"parts":{"envoy":' % FORMAT
BROKEN = {
    "empty": b"",
    "cut": STATE,
    "deep": DEEP,
    "deep objects": DEEP_OBJECT,
    "deep inside": STATE + DEEP,
    "deep and whole": STATE + b"[" * DEPTH + b"]" * DEPTH + b"}}",
    "not utf-8": STATE + b'"\xff\xfe"}}',
    "another type": b'{"format":"x"}',
    "a list": b"[]",
    "null": b"null",
    "zeros": b"\0" * 4096,
    "large numbers": b'{"format":1e999}',
    "huge": b" " * (5 << 20),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_state_file_that_cannot_be_used_adopts_nothing(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    write_private(tmp_path / STATE_FILE, content)
    assert read_state(tmp_path) is None
    assert len(caplog.records) == 1
    assert str(tmp_path / STATE_FILE) in caplog.text
    assert len(caplog.text) < 1000


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
async def test_a_source_that_cannot_be_used_is_fetched_again(tmp_path: Path, content: bytes) -> None:
    write_private(tmp_path / SOURCE_FILE, content)
    assert read_source(tmp_path) is None


PACKED = [
    b"",
    b"\xc1",
    b"\x91" * DEPTH + b"\xc0",
    b"\x81\xa1a" * DEPTH,
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xa2\xff\xfe",
]


@pytest.mark.parametrize("content", PACKED, ids=range(len(PACKED)))
def test_a_handover_that_cannot_be_read_is_refused(content: bytes) -> None:
    with pytest.raises(HandoverFailed, match="cannot be read"):
        decode_daemon_section(Handover(1, 1, 1, "", (), (), {SECTION: content}))
    memfd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        os.write(memfd, content)
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, handover._SEALS)
        with pytest.raises(HandoverFailed, match="cannot be read"):
            handover.read(memfd)
        interim_responder.start({interim_responder.VARIABLE: str(memfd)})
    finally:
        os.close(memfd)


@pytest.mark.parametrize("content", PACKED, ids=range(len(PACKED)))
async def test_a_last_good_configuration_that_cannot_be_read_is_not_used(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    import hashlib

    write_private(tmp_path / FILE, MAGIC + hashlib.sha256(content).digest() + content)
    store = LastGoodStore(tmp_path, Binding("", "", "", ""), lambda: None, max_age=1e9)
    assert await store.load() is None
    assert "has another format" in caplog.text


async def test_an_access_log_line_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "al.sock"
    logs = AccessLogs(path, lambda _part, _concern: None, flush=0.1)
    up = asyncio.Event()
    running = asyncio.create_task(logs.run(up.set))
    await up.wait()
    bad = (DEEP, DEEP_OBJECT, b'{"address":"127.0.0.1:1","message":' + DEEP, b'{"address":' + DEEP_OBJECT)
    lines = (*bad, b'{"address":"127.0.0.1:1","message":' + b"[" * 900 + b"]" * 900 + b"}")

    def write() -> None:
        with path.open("wb", buffering=0) as fifo:
            for line in lines:
                fifo.write(line + b"\n")

    await asyncio.to_thread(write)

    async def read() -> bool:
        return logs.status()["lines"] == len(lines)

    await poll_async(read, what="all lines")
    assert int(str(logs.status()["malformed"])) >= len(bad)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def write_state(directory: Path, pid: int, fifo: str) -> None:
    process_identity = identity.identity_of(pid)
    assert process_identity is not None
    child = {"name": "envoy", "pid": pid, "start_time": process_identity.start_time, "uid": process_identity.uid}
    child |= {"exe": process_identity.exe, "fifo": fifo}
    write_json(
        directory / STATE_FILE,
        {"format": FORMAT, "boot": identity.boot_id(), "pid": 1, "start_time": 1, "children": [child]},
    )


@pytest.mark.parametrize("fifo", ["a\0b", "a\0b.out", "/dev/null", "..", "{}/victim"])
async def test_a_child_whose_output_is_no_fifo_of_ours_is_not_adopted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fifo: str
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:  # noqa: ASYNC220
        try:
            write_state(tmp_path, process.pid, fifo.replace("{}", str(tmp_path)))
            assert previous_in(tmp_path).children == ()
            assert "its output" in caplog.text
        finally:
            process.kill()


async def test_the_end_of_a_child_removes_a_fifo_of_the_work_directory_alone(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    victims = [tmp_path / "envoy.1.out", work / "envoy.1.out"]
    for victim in victims:
        victim.write_text("of somebody else")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:  # noqa: ASYNC220
        write_state(work, process.pid, str(victims[0]))
        previous = previous_in(work)
        process.kill()
    await asyncio.gather(*(child.wait() for child in previous.children))
    assert [victim.read_text() for victim in victims] == ["of somebody else"] * 2


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "unix:", "unix:a\0b", "host:1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:\u0663"),
        *("127.0.0.1:" + "9" * 5000, "127.0.0.1:-1", "[[::1]]:1"),
    ],
)
def test_an_admin_address_that_cannot_be_is_none(text: str) -> None:
    assert parse_admin(text) is None


@pytest.mark.parametrize("address", [TcpAdmin("127.0.0.1", 9901), TcpAdmin("::1", 1), UnixAdmin("/a b/c:1")])
def test_an_admin_address_comes_back_as_it_was(address: TcpAdmin | UnixAdmin) -> None:
    assert parse_admin(str(address)) == address


async def test_without_a_boot_id_nothing_is_adopted_and_the_state_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(identity, "BOOT_ID", tmp_path / "hidden")
    failures: list[str] = []
    file = StateFile(tmp_path, failures.append)
    file.note([], {"addresses": {}})
    await file.written()
    assert failures == []
    assert (tmp_path / STATE_FILE).is_file()
    assert read_state(tmp_path) is None
    assert "boot id of this host cannot be read; no process is adopted" in caplog.text


async def test_a_directory_that_is_gone_costs_a_warning(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    failures: list[str] = []
    file = StateFile(gone, failures.append)
    for _ in range(3):
        file.note([])
        await file.written()
    assert len(failures) == 1
    assert str(gone) in failures[0]
    file.remove()
    tidy(gone)
    forget(gone)
    gone.mkdir()
    file.note([])
    await file.written()
    assert failures[1:] == [""]


@pytest.mark.attack
@pytest.mark.process
def test_a_work_directory_that_is_taken_away_while_it_runs() -> None:
    """Traffic continues; a reload and a re-execution fail with a reason, and the stop is clean."""
    with XdsControlPlane() as plane, open_loaded_rig(plane) as rig, rig.up() as daemon:
        envoy = rig.the_envoy()
        shutil.rmtree(rig.work)
        for what in ("reload", "reexec"):
            done = rig.run_command(daemon, what)
            assert done.returncode == 79, (what, done.stdout, done.stderr)
            assert f"{rig.work}" in done.stderr
            assert "No such file or directory" in done.stderr
        assert envoy.is_running()
        assert rig.serves()
        daemon.terminate()
        assert daemon.wait() == 0, daemon.output()
        for word in ("bug in kumadp", "never retrieved", "stopping failed", "Traceback"):
            assert word not in daemon.output(), daemon.output()


@pytest.mark.attack
@pytest.mark.process
def test_envoy_dies_after_the_work_directory_was_taken_away() -> None:
    with XdsControlPlane() as plane, open_loaded_rig(plane) as rig, rig.up("--envoy-restart-budget=2") as daemon:
        envoy = rig.the_envoy()
        shutil.rmtree(rig.work)
        envoy.send_signal(signal.SIGKILL)
        code = daemon.wait(60)
        assert code in {70, 71}, daemon.output()
        end = next(line for line in daemon.output().splitlines() if "daemon: exit code 7" in line)
        assert str(rig.work) in end, daemon.output()
        for word in ("bug in kumadp", "never retrieved", "stopping failed", "Traceback"):
            assert word not in daemon.output(), daemon.output()
