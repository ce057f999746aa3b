"""Real children: how they start, write output, are tied to us, and end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

import psutil
import pytest
import uvloop

from kumadp.errors import SpawnError
from kumadp.host.reexec.handover import HELD_SIGNALS
from kumadp.process.child import Child, Command
from kumadp.process.exit_status import ExitStatus
from tests.support.descriptors import open_descriptors
from tests.support.poll import poll
from tests.support.processes import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

pytestmark = pytest.mark.process

T = TypeVar("T")
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Run:
    """Runs a coroutine on one of the loops that kumadp may run on."""

    def __init__(self, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._make_loop = make_loop

    def __call__(self, work: Coroutine[object, object, T]) -> T:
        with asyncio.Runner(loop_factory=self._make_loop) as created:
            return created.run(work)


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return Run(LOOPS[request.param])


def python(source: str, *arguments: str, keep: bool = False, **environment: str) -> Command:
    argv = (sys.executable, "-c", source, *arguments)
    return Command(argv, "child", {"PATH": os.defpath, **environment}, "keep" if keep else "kill")


def shell(source: str) -> Command:
    return Command(("/bin/sh", "-c", source), "child", {"PATH": os.defpath})


async def ended(command: Command) -> tuple[ExitStatus, list[str]]:
    child = await Child.spawn(command)
    async with asyncio.timeout(30):
        status = await child.wait()
    return status, child.tail(200)


def of_another_group(path: Path) -> str:
    shutil.copy("/bin/true", path)
    os.chown(path, -1, os.getegid() + 1)
    path.chmod(0o2755)
    return str(path)


REPORT = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv[1:], "environment": dict(os.environ), "session": os.getsid(0) == os.getpid(),
    "stdin": sys.stdin.read(), "descriptors": sorted(os.listdir("/proc/self/fd")),
}))
"""


def test_a_child_gets_what_it_was_given_and_nothing_more(run: Run) -> None:
    status, lines = run(ended(python(REPORT, "a b", "--c=d", NAME="x")))
    reported = json.loads(lines[-1])
    assert status == ExitStatus(0, None)
    assert reported["argv"] == ["a b", "--c=d"]
    assert reported["environment"].items() >= {"NAME": "x", "PATH": os.defpath}.items()
    assert reported["environment"].keys() <= {"NAME", "PATH", "LC_CTYPE"}
    assert reported["session"] is True
    assert reported["stdin"] == ""
    assert len(reported["descriptors"]) <= 4


@pytest.mark.parametrize(
    ("source", "status", "text"),
    [
        ("exit 0", ExitStatus(0, None), "exit code 0"),
        ("exit 3", ExitStatus(3, None), "exit code 3"),
        ("kill -9 $$", ExitStatus(None, 9), "signal 9 (KILL)"),
        ("kill -11 $$", ExitStatus(None, 11), "signal 11 (SEGV)"),
        ("kill -40 $$", ExitStatus(None, 40), "signal 40 (unknown)"),
    ],
)
def test_how_it_ended_is_decoded(run: Run, source: str, status: ExitStatus, text: str) -> None:
    actual, _ = run(ended(shell(source)))
    assert actual == status
    assert actual.describe() == text
    assert actual.clean is (status.code == 0)


def test_term_ends_a_child_that_handles_it_and_kill_any_other(run: Run) -> None:
    async def stop(source: str, grace: float) -> ExitStatus:
        child = await Child.spawn(python(source))
        while "up" not in child.tail(5):
            await asyncio.sleep(0.01)
        return await child.stop(grace)

    polite = "import time; print('up', flush=True); time.sleep(60)"
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    assert run(stop(polite, 30)) == ExitStatus(None, signal.SIGTERM)
    assert run(stop(deaf, 0.1)) == ExitStatus(None, signal.SIGKILL)


def test_a_signal_to_a_child_that_has_ended_does_nothing(run: Run) -> None:
    async def late() -> bool:
        child = await Child.spawn(shell("exit 0"))
        await child.wait()
        assert child.ended
        return child.send_signal(signal.SIGTERM)

    assert run(late()) is False


def test_many_children_leave_no_descriptor(run: Run) -> None:
    async def many() -> frozenset[tuple[str, str]]:
        await ended(shell("exit 0"))
        previous = open_descriptors()
        for _ in range(20):
            await ended(shell("echo hello; exit 1"))
        return open_descriptors() - previous

    assert not run(many())


@pytest.mark.parametrize("name", ["none", "folder", "not executable"])
async def test_what_cannot_be_run_is_reported(tmp_path: Path, name: str) -> None:
    if name == "folder":
        (tmp_path / name).mkdir()
    if name == "not executable":
        (tmp_path / name).write_text("#!/bin/sh\n")
    with pytest.raises(SpawnError, match=name):
        await Child.spawn(Command((str(tmp_path / name),), "child", {}))


async def test_what_is_no_program_is_an_error_with_the_reason(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x00\x01\x02")
    program.chmod(0o755)
    status, lines = await ended(Command((str(program),), "child", {}))
    assert status == ExitStatus(127, None)
    assert "Exec format error" in lines[-1]


async def test_children_are_spawned_from_the_main_thread_alone() -> None:
    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(ended(shell("exit 0")))
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "main thread" in str(failures[0])


async def test_a_flood_of_output_blocks_nobody_and_keeps_200_lines() -> None:
    source = "import sys\nfor n in range(100_000): sys.stdout.write(f'line {n}\\n')"
    status, lines = await ended(python(source))
    assert status.clean
    assert lines == [f"line {number}" for number in range(99_800, 100_000)]


async def test_lines_have_the_level_that_coredns_and_go_give_them(caplog: pytest.LogCaptureFixture) -> None:
    source = (
        "echo '[INFO] one'; echo '[WARNING] two'; echo '[ERROR] three'; echo '[DEBUG] four'; echo '[FATAL] five'; "
        "echo 'maxprocs: six'; echo '[2026-11-24 05:05:54.236][1][error][main] seven'; echo 'panic: eight'; printf nine"
    )
    with caplog.at_level(logging.DEBUG, "kumadp.child.child"):
        _, lines = await ended(shell(source))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "one"),
        ("WARNING", "two"),
        ("ERROR", "three"),
        ("DEBUG", "four"),
        ("ERROR", "five"),
        ("INFO", "maxprocs: six"),
        ("INFO", "[2026-11-24 05:05:54.236][1][error][main] seven"),
        ("ERROR", "panic: eight"),
        ("INFO", "nine"),
    ]
    assert lines[0] == "[INFO] one"


async def test_a_long_line_is_cut_once_and_odd_bytes_pass(caplog: pytest.LogCaptureFixture) -> None:
    source = (
        "import sys; w = sys.stdout.buffer.write\n"
        "w(b'x' * 1_000_000 + b'\\nafter\\n'); w(b'\\xff\\xfe odd\\n'); w(b'no end')"
    )
    logging.getLogger("kumadp").propagate = True
    with caplog.at_level(logging.INFO, "kumadp.child.child"):
        _, lines = await ended(python(source))
    assert [line[-5:] for line in lines if line.startswith("xxx")] == ["[cut]"]
    assert lines[1:] == ["after", "\ufffd\ufffd odd", "no end"]
    assert caplog.messages == lines


async def test_a_grandchild_that_holds_the_pipe_and_floods_it_delays_nothing(tmp_path: Path) -> None:
    reported = tmp_path / "pid"
    # In a separate session it is out of our reach; the closed pipe ends it.
    flood = f"setsid sh -c 'echo $$ >{reported}; exec yes' & while [ ! -s {reported} ]; do sleep 0.01; done"
    status, _ = await ended(shell(flood))
    assert status.clean
    poll(lambda: not is_alive(int(reported.read_text())), what="the end of the flood")


async def test_what_a_wrapper_leaves_behind_ends_with_it() -> None:
    status, lines = await ended(shell("sleep 60 & echo $!; exit 3"))
    assert status == ExitStatus(3, None)
    poll(lambda: not is_alive(int(lines[0])), what="its end")


async def test_no_ignored_signal_and_no_locale_of_python_reach_the_program() -> None:
    _, lines = await ended(shell("grep SigIgn /proc/self/status; env"))
    ignored = int(lines[0].removeprefix("SigIgn:"), 16)
    assert not [number.name for number in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (number - 1) & 1]
    assert not any(line.startswith("LC_CTYPE") for line in lines)
    argv = ("/bin/sh", "-c", "env")
    _, lines = await ended(Command(argv, "child", {"PATH": os.defpath, "LC_CTYPE": "C.UTF-8"}))
    assert "LC_CTYPE=C.UTF-8" in lines


async def test_no_blocked_signal_reaches_the_program() -> None:
    """One that is started while kumadp holds signals back must still end by SIGTERM."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    try:
        # Not through a shell, which unblocks them.
        child = await Child.spawn(Command(("/bin/grep", "SigBlk", "/proc/self/status"), "child", {}))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    async with asyncio.timeout(30):
        await child.wait()
    assert int(child.tail(1)[0].removeprefix("SigBlk:"), 16) == 0


async def test_a_stop_that_is_cancelled_kills_at_once() -> None:
    child = await Child.spawn(shell("trap '' TERM; echo up; while :; do sleep 0.1; done"))
    while "up" not in child.tail(5):
        await asyncio.sleep(0.01)
    stopping = asyncio.ensure_future(child.stop(3600))
    await asyncio.sleep(0)
    stopping.cancel()
    async with asyncio.timeout(30):
        assert await child.wait() == ExitStatus(None, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another group")
async def test_a_program_that_gains_rights_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = of_another_group(tmp_path / "program")
    logging.getLogger("kumadp").propagate = True
    await ended(Command((program,), "child", {}))
    assert "gains rights" in caplog.text


# A parent that spawns one child, prints its pid, and waits to be killed.
PARENT = """
import asyncio, os, sys
from kumadp.process.child import Child, Command
async def main():
    child = await Child.spawn(Command(("/bin/sleep", "60"), "child", {}, sys.argv[1]))
    while psutil_name(child.pid) != "sleep":
        await asyncio.sleep(0.01)
    print(child.pid, flush=True)
    await child.wait()
def psutil_name(pid):
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("fate", ["kill", "keep"])
def test_a_child_shares_its_parent_s_fate_or_not(loop: str, fate: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, fate, loop], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    if fate == "kill":
        poll(lambda: not is_alive(child.pid), what="the child's end")
    else:
        assert child.is_running()
        assert child.ppid() != parent.pid
        child.kill()
