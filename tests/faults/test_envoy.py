"""Envoy is killed, stopped, starved or broken."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp.errors import ExitCode
from tests.support.daemon import get_at
from tests.support.faults import OWN, Row, end_by, fault_rows, with_and_without_mtls
from tests.support.flawed_programs import failing_program, put_foreign_program
from tests.support.memory import HOG, memory_cgroup
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.rig import NODE, SOON

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.faults import FaultRig

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

GROUP = "Envoy"
# Seconds: how long a fault lasts that passes by itself.
SHORT, LONG, DRAIN = 5.0, 60.0, 20
KILLED, GIVEN_UP = r"envoy ended with signal 9", r"restart budget spent"
FOREIGN = r"Exec format error"
FAILED = ExitCode.CHILD_FAILED
LARGE_BUDGET = ("--envoy-restart-budget=100",)


def _ends_by(number: int) -> Callable[[FaultRig], None]:
    return lambda rig: end_by(rig.the_envoy(), number)


def _stopped_for(seconds: float) -> Callable[[FaultRig], None]:
    def act(rig: FaultRig) -> None:
        envoy = rig.the_envoy()
        envoy.suspend()
        time.sleep(seconds)
        if envoy.is_running():
            envoy.resume()

    return act


def _stopped_until_killed(rig: FaultRig) -> None:
    envoy = rig.the_envoy()
    envoy.suspend()
    poll(lambda: envoy not in rig.envoys(), what="the end of one that hangs", deadline=150.0)


def _kill_again_and_again(times: int, pause: float) -> Callable[[FaultRig], None]:
    def act(rig: FaultRig) -> None:
        for _ in range(times):
            end_by(rig.the_envoy(), signal.SIGKILL)
            time.sleep(pause)

    return act


def _kill_until_given_up(rig: FaultRig) -> None:
    daemon = rig.last

    def killed() -> bool:
        for envoy in rig.envoys():
            envoy.kill()
        return daemon.process.poll() is not None

    poll(killed, what="the end of kumadp", deadline=90.0)


def _flag(rig: FaultRig) -> Path:
    return rig.folder / "flag"


def _wrapped(rig: FaultRig, instead: str) -> tuple[str, ...]:
    path = failing_program(need_envoy(), rig.folder / "envoy", _flag(rig), instead)
    return (f"--binary-path={path}",)


def _exits_once(rig: FaultRig) -> tuple[str, ...]:
    return _wrapped(rig, f"rm {_flag(rig)}; exit 3")


def _exits(rig: FaultRig) -> tuple[str, ...]:
    return _wrapped(rig, "exit 3")


def _fails_at_start(rig: FaultRig) -> None:
    _flag(rig).touch()
    end_by(rig.the_envoy(), signal.SIGKILL)


def _linked(rig: FaultRig) -> tuple[str, ...]:
    path = rig.folder / "envoy"
    os.link(need_envoy(), path)
    return (f"--binary-path={path}",)


def _foreign(rig: FaultRig) -> None:
    put_foreign_program(need_envoy(), rig.folder / "envoy")
    end_by(rig.the_envoy(), signal.SIGKILL)


def _foreign_for_a_moment(rig: FaultRig) -> None:
    daemon = rig.last
    _foreign(rig)
    poll(lambda: FOREIGN in daemon.output(), what="a failed start")
    (rig.folder / "envoy").unlink()
    os.link(need_envoy(), rig.folder / "envoy")


def _without_descriptors(rig: FaultRig) -> None:
    envoy = rig.the_envoy()
    soft, hard = resource.prlimit(envoy.pid, resource.RLIMIT_NOFILE)
    # Envoy may abort.
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(envoy.pid, resource.RLIMIT_NOFILE, (envoy.num_fds(), hard))
        time.sleep(SHORT)
        resource.prlimit(envoy.pid, resource.RLIMIT_NOFILE, (soft, hard))


def _flood_admin(rig: FaultRig) -> None:
    """Keep Envoy's main thread busy with answers of its admin."""
    address, end = rig.last.admin_address(), time.monotonic() + 2 * SHORT

    def query() -> None:
        while time.monotonic() < end:
            get_at(address, "/stats/prometheus")

    threads = [threading.Thread(target=query) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _killed_during_a_reload(which: str) -> Callable[[FaultRig], None]:
    """Kill the ``old`` Envoy or the ``new`` one while that comes up, or the one that runs as a ``check`` before."""

    def act(rig: FaultRig) -> None:
        rig.last.process.send_signal(signal.SIGHUP)
        old = rig.the_envoy()
        option = "validate" if which == "check" else "--restart-epoch"

        def other() -> psutil.Process | None:
            with contextlib.suppress(psutil.Error):
                return next((envoy for envoy in rig.envoys() if envoy != old and option in envoy.cmdline()), None)
            return None

        new = poll(other, what="the other Envoy", deadline=SOON)
        end_by(old if which == "old" else new, signal.SIGKILL)
        poll(lambda: "reload (SIGHUP)" in rig.last.output(), what="the result", deadline=SOON)

    return act


def _killed_during_a_re_execution(rig: FaultRig) -> None:
    daemon = rig.last
    rig.wait_serving(daemon)
    before = Path(f"/proc/{daemon.pid}/environ").read_bytes()
    daemon.process.send_signal(signal.SIGUSR1)
    poll(lambda: Path(f"/proc/{daemon.pid}/environ").read_bytes() != before, what="the next program", deadline=SOON)
    end_by(rig.the_envoy(), signal.SIGKILL)
    poll(lambda: rig.count(daemon) == 1, what="its start", deadline=SOON)


def _killed_during_a_rejection(rig: FaultRig) -> None:
    rig.plane.break_clusters("backend")
    poll(lambda: rig.plane.rejected(NODE) > 0, what="the rejection", deadline=SOON)
    end_by(rig.the_envoy(), signal.SIGKILL)


ROWS = (
    Row("SIGKILL", _ends_by(signal.SIGKILL), KILLED, often=True),
    Row("SIGSEGV", _ends_by(signal.SIGSEGV), r"envoy ended with signal 11"),
    Row("SIGSTOP for 5 s", _stopped_for(SHORT)),
    Row("SIGSTOP for 60 s", _stopped_for(LONG), r"it is stopped \(SIGSTOP\)"),
    Row("SIGSTOP until kumadp kills it", _stopped_until_killed, r"Envoy hangs: no answer from its admin"),
    Row("killed 10 times, every 30 s", _kill_again_and_again(10, 30.0), KILLED, flags=LARGE_BUDGET),
    Row("killed at once each time", _kill_until_given_up, GIVEN_UP, exit_code=FAILED),
    Row("killed, the next one exits at its start", _fails_at_start, r"exit code 3", flags=_exits_once),
    Row("killed, all others exit at their start", _fails_at_start, GIVEN_UP, exit_code=FAILED, flags=_exits),
    Row("killed, binary of another architecture for a moment", _foreign_for_a_moment, FOREIGN, flags=_linked),
    Row("killed, binary of another architecture", _foreign, FOREIGN, exit_code=FAILED, flags=_linked),
    Row("no free descriptors for 5 s", _without_descriptors, r"Too many open files|envoy ended with signal"),
    Row("admin flooded for 10 s", _flood_admin, loses=()),
    Row("killed during a reload: the old one", _killed_during_a_reload("old"), KILLED),
    Row("killed during a reload: the new one", _killed_during_a_reload("new"), r"ended with signal 9"),
    Row("killed during a reload: the one that validates", _killed_during_a_reload("check"), r"ended with signal 9"),
    # A virtual probe waits for the next program: on a busy host that takes longer than a kubelet waits.
    Row("killed during a re-execution", _killed_during_a_re_execution, KILLED, loses=(*Row.loses, *OWN)),
    Row("killed after it rejected a response", _killed_during_a_rejection, KILLED),
)


@fault_rows(ROWS)
def test_envoy(fault_rig: FaultRig, row: Row) -> None:
    row.run(fault_rig)


@with_and_without_mtls()
def test_out_of_memory(fault_rig: FaultRig) -> None:
    row = Row("out of memory (cgroup)", lambda _rig: None, r"out of memory")
    with memory_cgroup(400) as cgroup, fault_rig.up(prefix=cgroup.prefix) as daemon:
        with fault_rig.fault(row.name) as record:
            envoy = fault_rig.the_envoy()
            # The kernel takes this one first, and then the hog.
            Path(f"/proc/{envoy.pid}/oom_score_adj").write_text("1000")
            hog = subprocess.Popen([*cgroup.prefix, sys.executable, "-c", HOG], env=dict(os.environ))
            try:
                poll(lambda: envoy not in fault_rig.envoys(), what="its end", deadline=SOON)
            finally:
                hog.kill()
                hog.wait()
        row.check(record, daemon)


@with_and_without_mtls()
def test_an_old_one_is_killed_and_then_kumadp_while_the_control_plane_is_silent(fault_rig: FaultRig) -> None:
    """The Envoy that serves orders the old one to end, and aborts if nobody answers for 10 s."""
    row = Row("killed while it drained, then kumadp", lambda _rig: None, r"left by the previous kumadp is dead", ())
    with contextlib.ExitStack() as stack:
        drain = f"--drain-time={DRAIN}s"
        first = stack.enter_context(fault_rig.up(drain))
        with fault_rig.fault(row.name) as record:
            fault_rig.reload(first)
            due = time.monotonic() + DRAIN + 2
            old, new = fault_rig.envoys()
            end_by(old, signal.SIGKILL)
            poll(lambda: "before its time" in first.output(), what="its end being noticed", deadline=SOON)
            fault_rig.kill(first)
            fault_rig.plane.deafen()
            second = stack.enter_context(fault_rig.up(drain, ready=False))
            poll(lambda: time.monotonic() > due + 12, what="the time when it would abort", deadline=60.0)
            fault_rig.plane.deafen(False)
        assert fault_rig.envoys() == [new], second.output()
        # It was not there for a moment.
        assert record.lost("inbound", "outbound") == 0
        record.expected = record.reported(row.reported)
        assert record.expected, record


@with_and_without_mtls()
@pytest.mark.parametrize(
    ("name", "broken", "reported"),
    [
        ("exits at the first start", _exits, r"does not answer --version as Envoy does"),
        ("binary of another architecture at the first start", _linked, r"is a program for another architecture"),
    ],
)
def test_a_first_start(
    fault_rig: FaultRig, name: str, broken: Callable[[FaultRig], tuple[str, ...]], reported: str
) -> None:
    flags = broken(fault_rig)
    _flag(fault_rig).touch()
    if "architecture" in name:
        put_foreign_program(need_envoy(), fault_rig.folder / "envoy")
    with fault_rig.fault(name, traffic=False, ends=True) as record, fault_rig.up(*flags, ready=False) as daemon:
        daemon.wait(SOON)
    record.expected = record.reported(reported)
    assert record.expected, record
    assert record.exit_code == ExitCode.BINARY_NOT_FOUND, record
