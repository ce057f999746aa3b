"""A stop at every moment: whatever serves is drained, and nothing is left running.

Each case sends the stop a little later than the one before it, over the whole of a re-execution, an adoption after
SIGKILL, a reload and a start. Where Envoy serves it must fail its health checks, answer, and be gone in the end.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp.errors import ExitCode
from kumadp.host.reexec.handover import HELD_SIGNALS
from tests.support.daemon import Daemon, Ports, get, run_kumadp
from tests.support.poll import poll

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

    from tests.support.scripted_control_plane import ScriptedControlPlane

pytestmark = pytest.mark.process

STEP = 0.01
"""Seconds between the moments that are tried."""
FATES = ("kill", "keep")


def rarely(*values: object) -> list[ParameterSet]:
    """Cases that `make attack` alone tries: they take seconds, and others like them are always tried."""
    return [pytest.param(value, marks=pytest.mark.attack) for value in values]


def arguments(tmp_path: Path, plane: ScriptedControlPlane, fate: str) -> tuple[str, ...]:
    ca = plane.write_ca(tmp_path / "ca.crt")
    named = (f"--cp-address={plane.url}", f"--ca-cert-file={ca}", "--name=web", "--mesh=default")
    return (*named, "--drain-time=60s", "--on-parent-death", fate)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def is_draining(daemon: Daemon) -> bool:
    assert daemon.process.poll() is None, f"it ended with {daemon.process.returncode}:\n{daemon.output()}"
    return get(daemon.ports.admin, "/ready")[0] == 503


def check_drain(daemon: Daemon, envoy: psutil.Process, number: int = signal.SIGTERM) -> None:
    """Envoy drains; a second signal ends everything."""
    poll(lambda: is_draining(daemon), what="Envoy failing its health checks")
    assert get(daemon.ports.inbound) == (200, "web"), daemon.output()
    assert not is_gone(envoy)
    # It comes to its port again in the middle of a re-execution.
    poll(lambda: get(daemon.ports.readiness, "/ready") == (503, "TERMINATING"), what="TERMINATING")
    daemon.process.send_signal(number)
    assert daemon.wait() == ExitCode.OK, daemon.output()
    assert is_gone(envoy), daemon.output()


def reexecuted(tmp_path: Path, ports: Ports, plane: ScriptedControlPlane, fate: str, wait: float, number: int) -> None:
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane, fate)) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        daemon.process.send_signal(signal.SIGUSR1)
        poll(lambda: "takes over" in daemon.output(), what="the end of the check")
        time.sleep(wait)
        daemon.process.send_signal(number)
        check_drain(daemon, envoy, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, *rarely(signal.SIGINT, signal.SIGQUIT)])
def test_right_after_the_program_was_replaced(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane, number: signal.Signals
) -> None:
    reexecuted(tmp_path, ports, scripted_plane, "keep", 0.0, number)


@pytest.mark.attack
@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("step", range(100))
def test_at_each_moment_of_a_re_execution(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane, fate: str, step: int
) -> None:
    reexecuted(tmp_path, ports, scripted_plane, fate, step * STEP, signal.SIGTERM)


@pytest.mark.attack
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_no_other_signal_ends_it_while_the_program_is_replaced(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane, number: signal.Signals
) -> None:
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, scripted_plane, "keep")) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        daemon.process.send_signal(signal.SIGUSR1)
        poll(lambda: "takes over" in daemon.output(), what="the end of the check")
        # Each of them several times, over the whole of it.
        for _ in range(30):
            daemon.process.send_signal(number)
            time.sleep(STEP)
        poll(lambda: daemon.output().count("-> READY") >= 2, what="READY again")
        assert daemon.process.poll() is None
        assert not is_gone(envoy)


def adopted(tmp_path: Path, ports: Ports, plane: ScriptedControlPlane, wait: float) -> None:
    """The first kumadp is killed; the second is stopped ``wait`` seconds after it began to start."""
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane, "keep")) as first:
        first.wait_ready()
        envoy = first.envoy()
        poll(lambda: (tmp_path / "work" / "state.json").exists(), what="the state file")
        first.process.kill()
        first.wait()
        with run_kumadp(tmp_path, ports, *arguments(tmp_path, plane, "keep")) as daemon:
            # Before that nothing of it is there yet, and the Envoy is the next one's.
            poll(lambda: catches(daemon.pid, signal.SIGTERM), what="its first handlers")
            time.sleep(wait)
            daemon.terminate()
            check_drain(daemon, envoy)


def test_at_the_first_moment_of_an_adoption(tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane) -> None:
    adopted(tmp_path, ports, scripted_plane, 0.0)


@pytest.mark.attack
@pytest.mark.parametrize("step", range(90))
def test_at_each_moment_of_an_adoption(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane, step: int
) -> None:
    adopted(tmp_path, ports, scripted_plane, step * STEP)


@pytest.mark.attack
@pytest.mark.parametrize("step", range(60))
def test_at_each_moment_of_a_reload(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane, step: int
) -> None:
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, scripted_plane, "kill")) as daemon:
        daemon.wait_ready()
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(2 * step * STEP)
        daemon.terminate()
        # An epoch that comes up answers 503 too.
        poll(lambda: get(ports.readiness, "/ready") == (503, "TERMINATING"), what="TERMINATING")
        poll(lambda: is_draining(daemon), what="Envoy failing its health checks")
        assert get(ports.inbound) == (200, "web"), daemon.output()
        envoys = [child for child in psutil.Process(daemon.pid).children() if child.name() == "envoy"]
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK, daemon.output()
        assert all(is_gone(child) for child in envoys), daemon.output()


@pytest.mark.attack
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", range(40))
def test_at_each_moment_of_a_start(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane, step: int, number: signal.Signals
) -> None:
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, scripted_plane, "keep")) as daemon:
        poll(lambda: "settings:" in daemon.output(), what="the first line")
        time.sleep(3 * step * STEP)
        envoys = [child for child in psutil.Process(daemon.pid).children() if child.name() == "envoy"]
        daemon.process.send_signal(number)
        if "READY" in daemon.output():
            poll(lambda: is_draining(daemon), what="Envoy failing its health checks")
        time.sleep(STEP)
        daemon.process.send_signal(number)
        assert daemon.wait() == ExitCode.OK, daemon.output()
        assert all(is_gone(child) for child in envoys), daemon.output()


@pytest.mark.parametrize("number", [signal.SIGTERM, *rarely(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)])
def test_a_signal_before_the_run_loop(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane, number: signal.Signals
) -> None:
    # Settings are read from a FIFO that has no writer, so this is as early as it can be held.
    settings = tmp_path / "settings.yaml"
    os.mkfifo(settings)
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, scripted_plane, "kill"), "--config", str(settings)) as daemon:
        poll(lambda: catches(daemon.pid, number), what="its first handlers")
        daemon.process.send_signal(number)
        if number == signal.SIGTERM:
            assert daemon.wait() == ExitCode.OK
            return
        with settings.open("w") as file:
            file.write("{}\n")
        daemon.wait_ready()


def catches(pid: int, number: int) -> bool:
    """Whether a signal is caught or ignored (proc_pid_status(5))."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16)) >> (number - 1) & 1)


@pytest.mark.parametrize("again", [False, *rarely(True)])
def test_no_thread_but_the_main_one_takes_a_signal(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane, again: bool
) -> None:
    """One that another thread takes while the main one holds it back would be lost over execve(2)."""
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, scripted_plane, "kill"), dns=True) as daemon:
        daemon.wait_ready()
        if again:
            daemon.process.send_signal(signal.SIGUSR1)
            poll(lambda: daemon.output().count("-> READY") >= 2, what="READY again")
        blocked = {}
        for task in Path(f"/proc/{daemon.pid}/task").iterdir():
            fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            blocked[int(task.name)] = int(fields["SigBlk"], 16)
        held = sum(1 << (number - 1) for number in HELD_SIGNALS)
        assert blocked.pop(daemon.pid) & held == 0
        assert blocked
        assert all(mask & held == held for mask in blocked.values()), blocked
        # And what it starts has none blocked.
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{daemon.envoy().pid}/status").read_text().splitlines()
        )
        assert int(fields["SigBlk"], 16) & held == 0
