"""What is handed over by execve(2): only what is ours, whole and for us is taken."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import uvloop

from kumadp.errors import HandoverFailed, PortsTaken
from kumadp.host.net.ports import BindAddress, check_ports
from kumadp.host.net.serve import bind_tcp, bind_udp, bind_unix
from kumadp.host.reexec import handover
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.reexec.handover import Handover, collect, read, receive
from kumadp.host.reexec.inherited_sockets import HandedSocket
from kumadp.host.reexec.interim_responder import VARIABLE
from tests.support.command import ROOT
from tests.support.descriptors import open_descriptors
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


Kept = list[socket.socket]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Sockets that are closed in the end; none of another test is known."""
    sockets: Kept = []
    inherited.close_unclaimed()
    yield sockets
    for sock in sockets:
        sock.close()
    inherited.close_unclaimed()


def handed_over(sock: socket.socket, kind: inherited.Kind, host: str, port: int) -> None:
    """What the next program sees: a descriptor, and where it is bound."""
    inherited.receive([HandedSocket(kind, host, port, os.dup(sock.fileno()))])
    sock.close()


def test_what_is_written_is_read_again_and_cannot_be_changed() -> None:
    created = collect({"relay": b"\x00secret"}, [7, -1, 5])
    memfd = handover.write(created)
    try:
        assert read(memfd) == created
        assert read(memfd).descriptors[:2] == (5, 7)
        assert not os.get_inheritable(memfd)
        with pytest.raises(PermissionError):
            os.write(memfd, b"x")
        assert collect({}, [], created).count == 2
    finally:
        os.close(memfd)


def test_what_is_not_ours_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert receive({}) is None
    with (tmp_path / "file").open("wb+") as file:
        file.write(msgspec.msgpack.encode(collect({}, [])))
        for number in ("no number", "-1", "99999", str(file.fileno())):
            environ = {VARIABLE: number}
            with pytest.raises(HandoverFailed):
                receive(environ)
            assert environ == {}
    unsealed = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(unsealed, msgspec.msgpack.encode(collect({}, [])))
    with pytest.raises(HandoverFailed, match="not sealed"):
        read(unsealed)
    os.close(unsealed)
    for other, output in (({"format": 99}, "format 99"), ({"pid": os.getpid() + 1}, f"process {os.getpid() + 1}")):
        memfd = handover.write(msgspec.structs.replace(collect({}, []), **other))
        with pytest.raises(HandoverFailed, match=output):
            receive({VARIABLE: str(memfd)})
        os.close(memfd)
    monkeypatch.setattr(msgspec.msgpack, "encode", lambda _value: b"\xc1")
    memfd = handover.write(collect({}, []))
    with pytest.raises(HandoverFailed, match="cannot be read"):
        read(memfd)
    os.close(memfd)


def test_a_socket_is_taken_over_with_what_waits_in_it(kept: Kept, tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "s"
    first = [
        (bind_tcp("127.0.0.1", port, "x"), "tcp"),
        (bind_udp("127.0.0.1", port, "x"), "udp"),
        (bind_unix(path), "unix"),
    ]
    client, sender, local = socket.create_connection(("127.0.0.1", port)), socket.socket(type=socket.SOCK_DGRAM), None
    client.send(b"question")
    sender.sendto(b"question", ("127.0.0.1", port))
    local = socket.socket(socket.AF_UNIX)
    local.connect(str(path))
    kept += [client, sender, local]
    inode = path.stat().st_ino
    reported = {(one.kind, one.host, one.port) for one in inherited.sockets()}
    assert reported >= {("tcp", "127.0.0.1", port), ("udp", "127.0.0.1", port), ("unix", str(path), 0)}
    handed_over(first[0][0], "tcp", "127.0.0.1", port)
    handed_over(first[1][0], "udp", "127.0.0.1", port)
    handed_over(first[2][0], "unix", str(path), 0)
    tcp, udp, unix = bind_tcp("127.0.0.1", port, "x"), bind_udp("127.0.0.1", port, "x"), bind_unix(path)
    kept += [tcp, udp, unix]
    kept += [tcp.accept()[0], unix.accept()[0]]
    assert udp.recv(100) == b"question"
    assert path.stat().st_ino == inode
    assert inherited.close_unclaimed() == []


async def test_a_port_that_was_handed_over_is_not_held_by_somebody_else(kept: Kept) -> None:
    port = free_port()
    first = bind_tcp("127.0.0.1", port, "x")
    address = BindAddress("127.0.0.1", port, "tcp", "readiness", "KUMA_READINESS_PORT")
    with pytest.raises(PortsTaken):
        await check_ports([address])
    handed_over(first, "tcp", "127.0.0.1", port)
    await check_ports([address])
    # The same port elsewhere: ours too, and given up for it.
    kept.append(bind_tcp("0.0.0.0", port, "x"))
    with pytest.raises(PortsTaken):
        bind_tcp("127.0.0.1", port, "x")


def test_sockets_that_nobody_claims_is_closed_and_reported(kept: Kept, tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "s"
    handed_over(bind_tcp("127.0.0.1", port, "x"), "tcp", "127.0.0.1", port)
    handed_over(bind_unix(path), "unix", str(path), 0)
    assert set(inherited.close_unclaimed()) == {f"127.0.0.1:{port}/tcp", str(path)}
    assert not path.exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_a_program_is_replaced_from_the_main_thread_alone() -> None:
    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            handover.become(collect({}, []), {}, lambda: None, ("/bin/false",))
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(failures[0])


def test_a_failed_exec_leaves_everything_as_it_was() -> None:
    read_end, write_end = os.pipe()
    signal.signal(signal.SIGUSR1, handler := lambda _number, _frame: None)
    previous = open_descriptors()
    try:
        with pytest.raises(HandoverFailed, match="/none cannot be run: No such file"):
            handover.become(collect({}, [read_end]), os.environ, lambda: None, ("/none",))
        with pytest.raises(HandoverFailed):
            handover.become(collect({}, [99999]), os.environ, lambda: None)
        assert not os.get_inheritable(read_end)
        assert signal.getsignal(signal.SIGUSR1) is handler
        assert open_descriptors() <= previous
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        os.close(read_end)
        os.close(write_end)


# Reads all of its standard input, then becomes itself once more: what it reads then is the same.
STDIN = """
import os, sys
from kumadp.host.reexec import handover
before = handover.receive(os.environ)
handover.buffer_stdin()
text = sys.stdin.read()
with open(handover.open_stdin()) as again:
    assert again.read() == text
print(len(text), text[-5:], flush=True)
if before is None or before.count < 3:
    handover.become(handover.collect({}, [], before), os.environ, sys.stdout.flush)
"""


def test_what_was_piped_in_is_read_again_by_the_next_program() -> None:
    text = "x" * 300_000 + " last"
    done = subprocess.run(
        [sys.executable, "-c", STDIN],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["300005  last"] * 4


async def use_threads() -> dict[str, bool]:
    await handover.block_signals_in_threads()
    await asyncio.get_running_loop().getaddrinfo("localhost", 80)
    await asyncio.to_thread(int)
    return held_by_threads()


def held_by_threads() -> dict[str, bool]:
    """Each thread of ours, and whether it blocks all that is held."""
    actual = {}
    for task in Path("/proc/self/task").iterdir():
        mask = int(re.findall(r"SigBlk:\s+(\w+)", (task / "status").read_text())[0], 16)
        actual[task.name] = all(mask >> (number - 1) & 1 for number in handover.HELD_SIGNALS)
    return actual


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_only_the_main_thread_takes_a_signal_that_is_held(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    previous = held_by_threads()
    with asyncio.Runner(loop_factory=loop) as runner:
        actual = runner.run(use_threads())
    new = {name: held for name, held in actual.items() if name not in previous}
    assert new
    assert all(new.values())
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & handover.HELD_SIGNALS


def test_the_format_is_that_of_this_version() -> None:
    # What an older program wrote must be readable by a newer one: a changed shape is a new FORMAT.
    fields = msgspec.structs.fields(Handover)
    assert [field.encode_name for field in fields if not field.required] == ["meanwhile"]
    assert [field.encode_name for field in fields if field.required] == [
        "format",
        "pid",
        "count",
        "version",
        "sockets",
        "descriptors",
        "sections",
    ]
