"""kumadp is killed, stopped, starved, or loses its files: traffic goes on, and the next kumadp continues."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from kumadp.errors import ExitCode
from kumadp.host.process_identity import start_time_of
from tests.support.clock import set_clock, shifted
from tests.support.control_planes import suited
from tests.support.faults import OWN, Row, end_by, fault_rows, with_and_without_mtls
from tests.support.memory import memory_cgroup
from tests.support.needs import missing
from tests.support.poll import poll
from tests.support.readonly import fill, free, inside, make_read_only, small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.faults import FaultRig

pytestmark = [pytest.mark.process, pytest.mark.timeout(1200)]

GROUP = "kumadp"
STEPS = tuple(0.05 * step for step in range(20))
CGROUPS = Path("/sys/fs/cgroup")


def limit(pid: int, what: int, number: int) -> int:
    """Change a soft limit of a process; return what it was."""
    soft, hard = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (number, hard))
    return soft


@contextlib.contextmanager
def limited(rig: FaultRig, what: int, number: int) -> Iterator[None]:
    pid = rig.last.pid
    before = limit(pid, what, number)
    try:
        yield
    finally:
        limit(pid, what, before)


def refused(rig: FaultRig, what: str) -> None:
    """Request a reload or a re-execution, which must be refused."""
    done = rig.run_command(rig.last, what)
    assert done.returncode == ExitCode.REFUSED, (done, rig.last.output())


def reload(rig: FaultRig) -> None:
    """Reload, and wait until the old Envoy has ended."""
    rig.reload(rig.last)
    rig.the_envoy()


# What a running kumadp survives.


def stopped(rig: FaultRig) -> None:
    rig.last.process.send_signal(signal.SIGSTOP)
    time.sleep(5.0)
    rig.last.process.send_signal(signal.SIGCONT)


def without_state(rig: FaultRig) -> None:
    shutil.rmtree(rig.state)
    reload(rig)
    rig.try_reexec(rig.last)


def without_work(rig: FaultRig) -> None:
    shutil.rmtree(rig.work)
    refused(rig, "reload")


def with_clock(rig: FaultRig) -> None:
    rig.prefix = shifted(rig.folder / "clock")


def other_clock(rig: FaultRig) -> None:
    for seconds in (3600, -3600, 0):
        set_clock(rig.folder / "clock", seconds)
        rig.plane.drop_connections()
        time.sleep(2.0)
        rig.wait_state(rig.last, "open")


def without_descriptors(rig: FaultRig) -> None:
    with limited(rig, resource.RLIMIT_NOFILE, 3):
        rig.plane.drop_connections()
        time.sleep(4.0)


@contextlib.contextmanager
def no_processes(rig: FaultRig) -> Iterator[None]:
    """Allow kumadp no further process or thread in this block, as RLIMIT_NPROC does for a user other than root."""
    parent = next((path for path in (CGROUPS / "pids", CGROUPS) if (path / "cgroup.procs").exists()), CGROUPS)
    path = parent / f"kumadp-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as error:
        missing(f"no cgroup here: {error.strerror}")
    try:
        if not (path / "pids.max").exists():
            missing("the controller of processes is not on")
        (path / "cgroup.procs").write_text(str(rig.last.pid))
        (path / "pids.max").write_text("1")
        yield
        (path / "pids.max").write_text("max")
    finally:
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (parent / "cgroup.procs").write_text(pid)
        path.rmdir()


def without_processes(rig: FaultRig) -> None:
    with no_processes(rig):
        rig.plane.drop_connections()
        time.sleep(4.0)
    rig.plane.drop_connections()


def killed_without_processes(rig: FaultRig) -> None:
    with no_processes(rig):
        end_by(rig.the_envoy(), signal.SIGKILL)
        time.sleep(2.0)


def two_of_one_name(rig: FaultRig) -> None:
    command = psutil.Process(rig.last.pid).cmdline()
    done = subprocess.run(
        command, env=dict(rig.last.environment), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == ExitCode.OS, done
    assert "is used by another kumadp that is running" in done.stdout + done.stderr, done


def full(rig: FaultRig) -> None:
    fill(rig.last, rig.work)
    refused(rig, "reload")
    refused(rig, "reexec")
    free(rig.last, rig.work)
    reload(rig)


def read_only(rig: FaultRig) -> None:
    make_read_only(rig.last, rig.work)
    refused(rig, "reload")
    assert inside(rig.last.pid, "umount", str(rig.work), environment=dict(os.environ)).returncode == 0
    reload(rig)


def on_small_disk(rig: FaultRig) -> None:
    rig.work.mkdir()
    rig.prefix = small_disk(rig.work, "1m")


ROWS = (
    Row("SIGSTOP for 5 s", stopped, loses=OWN),
    Row("state directory deleted", without_state, loses=OWN),
    Row("work directory deleted, a reload refused", without_work, r"work", loses=()),
    Row("disk of the work directory full", full, r"No space left", loses=OWN, prepare=on_small_disk),
    Row("disk of the work directory read-only", read_only, r"Read-only|cannot be written", loses=(),
        prepare=on_small_disk),
    Row("clock an hour forward, and back", other_clock, loses=(), prepare=with_clock),
    Row("no descriptors for 4 s", without_descriptors, r"Too many open files", loses=OWN),
    Row("no process and no thread can be started for 4 s", without_processes, loses=()),
    Row("Envoy killed where no process can be started", killed_without_processes, r"cannot be started"),
    # `make test` runs other tests at the same time: a probe may take more than its second.
    Row("two of one name", two_of_one_name, loses=OWN, often=True),
)  # fmt: skip


@fault_rows(ROWS)
def test_kumadp(fault_rig: FaultRig, row: Row) -> None:
    row.run(fault_rig)


# What another kumadp follows.


class Successors:
    """Runs one kumadp after the other; all of them are closed at the end."""

    def __init__(self, rig: FaultRig, stack: contextlib.ExitStack) -> None:
        self._rig, self._stack = rig, stack

    def next(self) -> None:
        """Run another one that serves; the last one must have ended."""
        daemon = self._stack.enter_context(self._rig.up())
        self._rig.wait_serving(daemon)


def run_successors(rig: FaultRig, row: Row, act: Callable[[FaultRig, Successors], None]) -> None:
    """As `Row.run`, but at the end of ``act`` another kumadp runs."""
    rig.plane.faults.linger = 0.1
    row.prepare(rig)
    with contextlib.ExitStack() as stack:
        successors = Successors(rig, stack)
        successors.next()
        with rig.fault(row.name) as record:
            act(rig, successors)
        last = rig.last
        row.check(record, last)
        last.terminate()
        assert last.wait() == ExitCode.OK, last.output()
    assert rig.envoys() == []
    assert rig.leftovers() == []


def kill(rig: FaultRig) -> None:
    rig.kill(rig.last)


def killed_at_each_step(number: int) -> Callable[[FaultRig, Successors], None]:
    """Return what sends this signal and then SIGKILL, each time a little later."""

    def act(rig: FaultRig, successors: Successors) -> None:
        for step in STEPS:
            rig.last.process.send_signal(number)
            time.sleep(step)
            kill(rig)
            successors.next()
            poll(lambda: len(rig.envoys()) == 1, what="a single Envoy", deadline=60.0)

    return act


def out_of_memory(rig: FaultRig, successors: Successors) -> None:
    with memory_cgroup(1) as cgroup:
        (cgroup.path / "cgroup.procs").write_text(str(rig.last.pid))
        with contextlib.suppress(OSError, KeyError):
            # It needs memory now: without any the kernel kills it.
            rig.status(rig.last)
        rig.run_command(rig.last, "reload")
        rig.last.process.wait(60)
    successors.next()


@contextlib.contextmanager
def stranger() -> Iterator[int]:
    with subprocess.Popen(["sleep", "300"]) as process:
        try:
            yield process.pid
            assert process.poll() is None, "the process of somebody else was killed"
        finally:
            process.kill()


def record_envoy(rig: FaultRig, **changes: Any) -> None:
    """Change the record of Envoy in the state file."""
    path = rig.work / "state.json"
    state: dict[str, Any] = json.loads(path.read_text())
    child = next(child for child in state["children"] if child["name"] == "envoy")
    child |= changes
    state["parts"]["envoy"]["current"] = child["pid"]
    path.write_text(json.dumps(state))


def reused_pid(rig: FaultRig, successors: Successors) -> None:
    kill(rig)
    end_by(rig.the_envoy(), signal.SIGKILL)
    with stranger() as pid:
        record_envoy(rig, pid=pid)
        successors.next()


def foreign_process(rig: FaultRig, successors: Successors) -> None:
    kill(rig)
    with stranger() as pid:
        record_envoy(rig, pid=pid, start_time=start_time_of(pid))
        successors.next()


SUCCESSIONS = (
    (Row("SIGKILL at 20 steps of 50 ms of a reload", kill, loses=OWN), killed_at_each_step(signal.SIGHUP)),
    (Row("SIGKILL at 20 steps of 50 ms of a re-execution", kill, loses=OWN), killed_at_each_step(signal.SIGUSR1)),
    (Row("out of memory", kill, loses=OWN), out_of_memory),
    (
        Row(
            "the left Envoy's pid is another program's",
            kill,
            r"^STARTING",
            loses=(*Row.loses, *OWN),
        ),
        reused_pid,
    ),
    (
        Row("a foreign process in state.json", kill, r"killing it", loses=(*Row.loses, *OWN)),
        foreign_process,
    ),
)
ACTS = {row.name: act for row, act in SUCCESSIONS}


@fault_rows([row for row, _ in SUCCESSIONS])
def test_another_kumadp_follows(fault_rig: FaultRig, row: Row) -> None:
    run_successors(fault_rig, row, ACTS[row.name])


def start_once(rig: FaultRig, step: float, number: int) -> int:
    """Start, send a signal after ``step`` seconds, and return the exit code."""
    with rig.up(ready=False) as daemon:
        time.sleep(step)
        daemon.process.send_signal(number)
        return daemon.wait()


@with_and_without_mtls()
@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, "SIGKILL at 20 steps of 50 ms of a start"), (signal.SIGTERM, "SIGTERM at 20 steps of a start")],
)
def test_start(fault_rig: FaultRig, number: int, name: str) -> None:
    rig = fault_rig
    rig.plane.faults.linger = 0.1
    rig.file.write_text(json.dumps(suited(rig.plane, rig.dataplane)))
    # Before its first handlers SIGTERM ends it as any program.
    codes = {-number} if number == signal.SIGKILL else {-number, ExitCode.OK}
    with contextlib.ExitStack() as stack:
        with rig.fault(name, traffic=False) as record:
            for step in STEPS:
                assert start_once(rig, step, number) in codes
                if number == signal.SIGTERM:
                    assert rig.envoys() == []
                else:
                    assert len(rig.envoys()) <= 1
            last = stack.enter_context(rig.up())
        assert record.serving
        assert len(rig.envoys()) == 1
        last.terminate()
        assert last.wait() == ExitCode.OK
    assert rig.envoys() == []
    assert rig.leftovers() == []
    assert [path.name for path in Path(rig.folder).glob("work/*.new")] == []
