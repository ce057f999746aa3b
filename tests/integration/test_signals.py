"""Signals in a real run, at moments when they hurt: while the program is replaced, with an admin that hangs.

Beside kuma-dp (2.8 to 2.14): the same order of things, but for the wait, which happens although the admin hangs.
"""

from __future__ import annotations

import http.client
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp.daemon.control_client import query_status
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.command import kumadp
from tests.support.daemon import Daemon, Ports, Workload, get, run_kumadp
from tests.support.epochs import answering_listener
from tests.support.needs import missing
from tests.support.poll import poll
from tests.support.scripted_control_plane import ScriptedControlPlane, bootstrap_answer, static_bootstrap

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


def arguments(tmp_path: Path, plane: ScriptedControlPlane, drain: str) -> tuple[str, ...]:
    ca = plane.write_ca(tmp_path / "ca.crt")
    return (
        f"--cp-address={plane.url}",
        f"--ca-cert-file={ca}",
        "--name=web",
        "--mesh=default",
        f"--drain-time={drain}",
    )


def reexecutions(daemon: Daemon) -> int:
    try:
        report = query_status(control_socket_path("web", daemon.environment))
    except OSError:
        return -1
    return int((report.get("reexec") or {}).get("count", 0))


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("fate", ["kill", "keep"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_comes_while_the_program_is_replaced_drains_and_leaves_no_envoy(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane, fate: str, number: signal.Signals
) -> None:
    more = ("--on-parent-death", fate)
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, scripted_plane, "60s"), *more) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        daemon.process.send_signal(signal.SIGUSR1)
        # From the first moment at which the new program is there.
        poll(lambda: reexecutions(daemon) == 1, what="the new program")
        daemon.process.send_signal(number)
        poll(lambda: get(ports.admin, "/ready")[0] == 503, what="Envoy failing its health checks")
        assert get(ports.readiness, "/ready") == (503, "TERMINATING")
        assert get(ports.inbound) == (200, "web")
        daemon.process.send_signal(number)
        assert daemon.wait() == ExitCode.OK
        assert is_gone(envoy)


@pytest.mark.parametrize("fate", ["kill", "keep"])
def test_a_stop_during_an_adoption_after_an_inbound_drain_leaves_no_envoy(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane, fate: str
) -> None:
    more = ("--on-parent-death", fate)
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, scripted_plane, "60s"), *more) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        daemon.process.send_signal(signal.SIGUSR2)
        poll(lambda: "SIGUSR2: draining inbound" in daemon.output(), what="the drain of inbound")
        daemon.process.send_signal(signal.SIGUSR1)
        poll(lambda: "takes over" in daemon.output(), what="the end of the old program")
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
        assert is_gone(envoy)


def is_drained(port: int) -> bool:
    """Whether Envoy closes each connection after its answer, as at the end of a drain."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        return answer.status == 200 and answer.getheader("connection") == "close"
    except OSError:
        return False
    finally:
        connection.close()


def test_inbound_stays_drained_after_envoy_dies(tmp_path: Path, ports: Ports, app: Workload) -> None:
    """A stop after the drain waits for nothing, so that inbound must not be taken up by the next Envoy."""
    bootstrap = static_bootstrap(ports, app.port)
    bootstrap["staticResources"]["listeners"] = [
        {**answering_listener(ports.inbound, "web"), "trafficDirection": "INBOUND"}
    ]
    with (
        ScriptedControlPlane(bootstrap_answer(bootstrap)) as plane,
        run_kumadp(tmp_path, ports, *arguments(tmp_path, plane, "1s")) as daemon,
    ):
        daemon.wait_ready()
        assert not is_drained(ports.inbound)
        daemon.process.send_signal(signal.SIGUSR2)
        poll(lambda: is_drained(ports.inbound), what="the drain of inbound")
        daemon.envoy().kill()
        poll(lambda: daemon.output().count("-> READY") == 2, what="READY again")
        poll(lambda: is_drained(ports.inbound), what="the drain of inbound in the next Envoy")
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def test_inbound_stays_drained_after_reexec(tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane) -> None:
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, scripted_plane, "60s")) as daemon:
        daemon.wait_ready()
        daemon.process.send_signal(signal.SIGUSR2)
        poll(lambda: "SIGUSR2: draining inbound" in daemon.output(), what="the drain of inbound")
        daemon.process.send_signal(signal.SIGUSR1)
        poll(lambda: reexecutions(daemon) == 1, what="the new program")
        # From READY on it is adopted: the answer of /ready alone is that of the program before.
        poll(lambda: daemon.output().count("-> READY") == 2, what="READY again")
        # An Envoy that is started now would take inbound up again.
        done = kumadp("reload", "--name=web", environment=daemon.environment)
        assert done.returncode == ExitCode.REFUSED
        assert "inbound is drained" in done.stderr
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def test_killall_finds_kuma_dp_before_and_after_a_reexecution(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane
) -> None:
    if shutil.which("killall") is None:
        missing("no killall here: install psmisc")
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, scripted_plane, "60s")) as daemon:
        daemon.wait_ready()
        assert psutil.Process(daemon.pid).name() == "kuma-dp"
        daemon.process.send_signal(signal.SIGUSR1)
        poll(lambda: reexecutions(daemon) == 1, what="the new program")
        daemon.wait_ready()
        # Signal 0: others may run here whom a test must not drain.
        done = subprocess.run(["killall", "--verbose", "-0", "kuma-dp"], capture_output=True, text=True, check=True)
        assert f"({daemon.pid})" in done.stderr
        daemon.process.send_signal(signal.SIGUSR2)
        poll(lambda: "SIGUSR2: draining inbound" in daemon.output(), what="the drain of inbound")
        assert get(ports.readiness, "/ready") == (200, "READY")
        daemon.process.send_signal(signal.SIGUSR2)
        poll(lambda: "SIGUSR2 again" in daemon.output(), what="the second one")
        # Drained already: the stop waits for nothing.
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
        assert "draining for at most" not in daemon.output()


def test_the_wait_happens_although_the_admin_hangs_and_envoy_is_killed_in_the_end(
    tmp_path: Path, ports: Ports, scripted_plane: ScriptedControlPlane
) -> None:
    more = ("--stop-grace=200ms",)
    with run_kumadp(tmp_path, ports, *arguments(tmp_path, scripted_plane, "3600s"), *more) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        envoy.suspend()
        daemon.terminate()
        poll(lambda: "draining for at most 3600" in daemon.output(), what="the wait")
        assert "no answer within" in daemon.output()
        assert get(ports.readiness, "/ready") == (503, "TERMINATING")
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
        assert is_gone(envoy)
