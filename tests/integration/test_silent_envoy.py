"""An Envoy that does not answer: readiness fails within 10 s, and Envoy is not restarted for that.

kuma-dp (2.8 to 2.14) answers READY as long as the process runs.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from kumadp.daemon.control_client import query_status
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.daemon import Daemon, Ports, get, run_kumadp, workload, write_mesh
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

REASON = "envoy: Envoy does not serve: it is stopped (SIGSTOP)"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        arguments = ("--standalone", str(mesh), "--name", "web", "--drain-time", "1s", "--on-parent-death", "keep")
        with run_kumadp(tmp_path, ports, *arguments, dns=True) as running:
            running.wait_ready()
            yield running


def is_ready(daemon: Daemon) -> bool:
    return get(daemon.ports.readiness, "/ready") == (200, "READY")


def test_a_stopped_envoy_is_not_ready_until_it_runs_again(daemon: Daemon) -> None:
    envoy = daemon.envoy()
    envoy.send_signal(signal.SIGSTOP)
    poll(lambda: get(daemon.ports.readiness, "/ready") == (503, "NOT_READY"), what="NOT_READY")
    status = query_status(control_socket_path("web", daemon.environment))
    assert REASON in status["reasons"]
    assert f"waiting: {REASON}" in daemon.output()
    assert status["children"]["envoy"]["pid"] == envoy.pid
    envoy.send_signal(signal.SIGCONT)
    poll(lambda: is_ready(daemon), what="READY again")
    assert query_status(control_socket_path("web", daemon.environment))["reasons"] == []
    assert get(daemon.ports.outbound) == (200, "backend")
    assert daemon.envoy() == envoy
    daemon.terminate()
    assert daemon.wait() == ExitCode.OK


def test_an_envoy_stopped_during_a_reexec_is_not_ready(daemon: Daemon) -> None:
    envoy = daemon.envoy()
    daemon.process.send_signal(signal.SIGUSR1)
    poll(lambda: "takes over" in daemon.output(), what="the end of the check")
    envoy.send_signal(signal.SIGSTOP)
    poll(lambda: get(daemon.ports.readiness, "/ready") == (503, "NOT_READY"), what="NOT_READY")
    envoy.send_signal(signal.SIGCONT)
    poll(lambda: is_ready(daemon), what="READY again")
    assert daemon.envoy() == envoy


def test_a_stopped_kumadp_does_not_take_envoy_for_silent(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    daemon.process.send_signal(signal.SIGCONT)
    poll(lambda: is_ready(daemon), what="an answer")
    assert "READY -> STARTING" not in daemon.output()


@pytest.mark.attack
def test_a_thawed_envoy_after_a_long_time_is_the_same(daemon: Daemon) -> None:
    """Half a minute of silence costs no restart: that takes a minute without any CPU."""
    envoy = daemon.envoy()
    envoy.send_signal(signal.SIGSTOP)
    time.sleep(30)
    assert not is_ready(daemon)
    envoy.send_signal(signal.SIGCONT)
    poll(lambda: is_ready(daemon), what="READY again")
    assert daemon.envoy() == envoy
