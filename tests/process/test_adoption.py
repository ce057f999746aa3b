"""Children that outlive the program that started them: kept, found again, adopted; those of ours after execve(2)."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import uvloop

from kumadp.host.process_identity import start_time_of
from kumadp.host.state_file import adoptable, read_state
from kumadp.process import log_pump as logpump
from kumadp.process.child import Child, Command, RunningProcess
from kumadp.process.exit_status import ExitStatus
from kumadp.process.fifo import FIFO_SIZE
from tests.support.command import ROOT
from tests.support.descriptors import open_descriptors
from tests.support.poll import poll, poll_async

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

# A parent that starts one child under keep, notes it in the state file, and waits to be killed.
PARENT = """
import asyncio, os, sys
from pathlib import Path
from kumadp.host.state_file import StateFile, record
from kumadp.process.child import Child, Command
async def main():
    folder = Path(sys.argv[1])
    command = Command(("/bin/sh", "-c", sys.argv[2]), "web", {"PATH": os.defpath}, "keep", folder / "web.out")
    child = await Child.spawn(command)
    state = StateFile(folder)
    state.note([await asyncio.to_thread(record, "web", child.pid, command.argv, fifo=str(child.fifo))])
    await state.written()
    print(child.pid, flush=True)
    await child.wait()
asyncio.run(main())
"""


class Kept:
    """What a parent that was killed has left behind."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder = folder
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(folder), script],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert parent.stdout is not None
        with parent.stdout:
            self.pid = int(parent.stdout.readline())
        self.process = psutil.Process(self.pid)
        poll(lambda: self.process.name() == "sh", what="the program itself")
        parent.kill()
        parent.wait()

    def adopt(self) -> Child:
        state = read_state(self.folder)
        assert state is not None
        [actual] = adoptable(state)
        return Child.adopt(
            RunningProcess(actual.name, actual.pid, actual.start_time, ours=False, fifo=Path(actual.fifo))
        )


def started(script: str, output: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sh", "-c", script], stdout=output)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="k") as name:
        yield Path(name)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_child_whose_parent_was_killed_is_adopted_with_all_its_output(folder: Path, loop: str) -> None:
    # More than a pipe holds by default, written while nobody reads.
    script = (
        f"while [ ! -e {folder}/go ]; do sleep 0.01; done;"
        "n=0; while [ $n -lt 9000 ]; do n=$((n+1)); echo line $n of nine thousand; done;"
        f"echo > {folder}/written; while [ ! -e {folder}/end ]; do sleep 0.01; done; echo bye; exit 5"
    )
    kept = Kept(folder, script)
    (folder / "go").touch()
    poll((folder / "written").exists, what="a child that writes with no reader, and goes on")

    async def work() -> tuple[ExitStatus, list[str]]:
        child = kept.adopt()
        assert not child.ours
        assert child.pid == kept.pid
        assert not child.ended
        await poll_async(lambda: asyncio.sleep(0, child.tail(1) == ["line 9000 of nine thousand"]), what="its lines")
        (folder / "end").touch()
        async with asyncio.timeout(30):
            return await child.wait(), child.tail(2)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        status, lines = runner.run(work())
    assert status == ExitStatus(None, None)
    assert "unknown" in status.describe()
    assert not status.clean
    assert lines == ["line 9000 of nine thousand", "bye"]
    assert not list(folder.glob("web*.out"))
    state = read_state(folder)
    assert state is not None
    assert adoptable(state) == []


@pytest.mark.parametrize("loop", LOOPS)
def test_an_adopted_child_is_stopped_and_killed_like_one_of_ours(folder: Path, loop: str) -> None:
    kept = Kept(folder, "trap '' TERM; while :; do sleep 0.05; done")

    async def work() -> ExitStatus:
        child = kept.adopt()
        assert child.started_at < asyncio.get_running_loop().time()
        return await child.stop(0.1)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        assert runner.run(work()) == ExitStatus(None, None)
    poll(lambda: not kept.process.is_running() or kept.process.status() == psutil.STATUS_ZOMBIE, what="its end")


async def test_the_group_of_a_stranger_s_child_is_left_alone(folder: Path) -> None:
    note = f"echo $! > {folder}/p; mv {folder}/p {folder}/pid"
    kept = Kept(folder, f"sleep 60 & {note}; while [ ! -e {folder}/end ]; do sleep 0.01; done; exit 0")
    child = kept.adopt()
    poll((folder / "pid").exists, what="the other's pid")
    other = psutil.Process(int((folder / "pid").read_text()))
    (folder / "end").touch()
    await child.wait()
    assert other.status() != psutil.STATUS_ZOMBIE
    other.kill()


async def test_a_process_that_is_gone_or_another_is_not_adopted() -> None:
    with started("exec sleep 60") as process:
        begun = start_time_of(process.pid)
        assert begun is not None
        previous = open_descriptors()
        with pytest.raises(ProcessLookupError):
            Child.adopt(RunningProcess("web", process.pid, begun + 1, ours=False))
        process.kill()
        poll(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, what="a zombie")
        # Somebody else has to reap it: to us it is gone.
        with pytest.raises(ProcessLookupError):
            Child.adopt(RunningProcess("web", process.pid, begun, ours=False))
    with pytest.raises(ProcessLookupError):
        Child.adopt(RunningProcess("web", process.pid, begun, ours=False))
    assert open_descriptors() <= previous


async def test_one_of_ours_that_ended_in_between_is_reaped_with_its_exit_code() -> None:
    process = started("exit 4")
    poll(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, what="a zombie")
    child = Child.adopt(RunningProcess("web", process.pid, start_time_of(process.pid) or 0, ours=True))
    async with asyncio.timeout(30):
        assert await child.wait() == ExitStatus(4, None)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    process.returncode = 4


@pytest.mark.parametrize(
    ("age", "quoted"),
    [(300.0, r"its last line, 30\d s before: starting workers"), (0.0, "its last line: starting workers")],
)
async def test_an_old_last_line_is_quoted_with_its_age(age: float, quoted: str) -> None:
    with started("exec sleep 60") as process:
        state = logpump.OutputState(lines=("starting workers",), last_at=time.monotonic() - age)
        begun = start_time_of(process.pid) or 0
        child = Child.adopt(RunningProcess("web", process.pid, begun, ours=True, output_state=state))
        assert re.fullmatch(quoted, child.last_line())
        assert child.handed().output_state.last_at == state.last_at
        await child.stop(5.0)
        process.returncode = 0


async def test_half_a_line_and_the_last_ones_go_over_to_the_next_program(folder: Path) -> None:
    read, write = os.pipe()
    process = started(f"echo one; printf tw; while [ ! -e {folder}/end ]; do sleep 0.01; done; echo o; exit 2", write)
    os.close(write)
    child = Child.adopt(RunningProcess("web", process.pid, start_time_of(process.pid) or 0, ours=True, output=read))
    await poll_async(lambda: asyncio.sleep(0, child.handed().output_state.beginning == b"tw"), what="half a line")
    handed = child.handed()
    assert (handed.output_state.lines, handed.output) == (("one",), read)
    # What execve(2) does to this program's view of the child: the process and its output stay.
    loop = asyncio.get_running_loop()
    loop.remove_reader(read)
    loop.remove_reader(child._pidfd)
    os.close(child._pidfd)
    next_one = Child.from_handed(handed)
    (folder / "end").touch()
    async with asyncio.timeout(30):
        assert await next_one.wait() == ExitStatus(2, None)
    assert next_one.tail(5) == ["one", "two"]
    process.returncode = 2


async def test_what_is_too_far_ahead_is_thrown_away_up_to_the_end_of_a_line(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("kumadp").propagate = True
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, FIFO_SIZE)
    pump = logpump.LogPump("web", read, lossy=True)
    os.write(write, b"a line of which there are so many that it fills all of the pipe\n" * (FIFO_SIZE // 64))
    await poll_async(lambda: asyncio.sleep(0, not pump._waiting()), what="an empty pipe")
    os.write(write, b"the last one\n")
    await poll_async(lambda: asyncio.sleep(0, pump.tail(1) == ["the last one"]), what="what comes next")
    assert set(pump.tail(200)) <= {"a line of which there are so many that it fills all of the pipe", "the last one"}
    assert caplog.text.count("dropped") == 1
    os.close(write)
    pump.drain()


async def test_two_of_one_name_have_a_fifo_each(folder: Path) -> None:
    command = Command(("/bin/sh", "-c", "sleep 60"), "web", {"PATH": os.defpath}, "keep", folder / "web.out")
    first, second = await Child.spawn(command), await Child.spawn(command)
    assert first.fifo != second.fifo
    first.send_signal(signal.SIGKILL)
    await first.wait()
    assert second.fifo is not None
    assert second.fifo.is_fifo()
    assert not (first.fifo or folder).is_fifo()
    second.send_signal(signal.SIGKILL)
    await second.wait()


async def test_a_program_that_is_kept_never_sees_a_broken_pipe(folder: Path) -> None:
    # Python dies of EPIPE at standard output here as Go does, and of a full pipe too.
    writing = (
        "import os, time\nfor n in range(50): os.write(1, b'%d\\n' % n)\nopen(os.environ['DONE'], 'w')\ntime.sleep(60)"
    )
    written = folder / "written"
    command = Command((sys.executable, "-c", writing), "web", {"DONE": str(written)}, "keep", folder / "web.out")
    child = await Child.spawn(command)
    # As when kumadp is killed: nobody has the read end.
    asyncio.get_running_loop().remove_reader(child._pump.descriptor)
    os.close(child._pump.descriptor)
    child._pump._descriptor = -1
    poll(written.exists, what="a program that wrote and lives")
    child.send_signal(signal.SIGKILL)
    assert await child.wait() == ExitStatus(None, signal.SIGKILL)
