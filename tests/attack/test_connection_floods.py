"""Clients that take descriptors: kumadp answers its own host all the while, and recovers when they have gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp.daemon.control_client import query_status
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.command import kumadp
from tests.support.daemon import Daemon, Ports, get, workload, write_mesh
from tests.support.hostile_clients import (
    KEEP_ALIVE,
    LIMIT,
    SLOW_POST,
    connections,
    crowd,
    descriptors,
    is_at_rest,
    limited,
)
from tests.support.poll import poll
from tests.support.standalone import run_standalone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.attack]

MANY = 1100


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """With a real Envoy, DNS on, and 1024 descriptors."""
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        folder = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        with run_standalone(folder, ports, dns=True, prefix=limited) as running:
            yield running


def serves_this_host(daemon: Daemon) -> None:
    """Readiness, probes, the control socket, traffic."""
    ports = daemon.ports
    for _ in range(20):
        assert get(ports.readiness, "/ready") == (200, "READY")
        assert get(ports.probes, "/app/healthz") == (200, "ok")
    assert get(ports.inbound) == (200, "web")
    status = query_status(control_socket_path("web", daemon.environment))
    assert status["ready"]
    assert 0 < status["descriptors"]["used"] < status["descriptors"]["limit"] == LIMIT


def recovers(daemon: Daemon) -> None:
    poll(lambda: connections(daemon.pid, psutil.CONN_CLOSE_WAIT) == 0, what="no connection left in CLOSE_WAIT")
    poll(lambda: is_at_rest(daemon.pid), what="a process at rest")


SENT = {"slow POST": SLOW_POST, "idle": KEEP_ALIVE, "half a head": b"GET", "silent": b""}


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
@pytest.mark.parametrize("door", ["probes", "readiness", "dns"])
def test_a_crowd_takes_no_place_from_this_host(daemon: Daemon, door: str, sent: bytes) -> None:
    before = descriptors(daemon.pid)
    with crowd(getattr(daemon.ports, door), MANY, sent):
        serves_this_host(daemon)
        assert descriptors(daemon.pid) < LIMIT // 2
        assert "Traceback" not in daemon.output()
    recovers(daemon)
    poll(lambda: descriptors(daemon.pid) < before + 20, what="descriptors given back")
    serves_this_host(daemon)


def test_an_envoy_that_dies_during_the_attack_is_restarted(daemon: Daemon) -> None:
    with crowd(daemon.ports.probes, MANY, SLOW_POST), crowd(daemon.ports.dns, MANY, b"\x00"):
        killed = daemon.kill_envoy()
        poll(lambda: "envoy" in daemon.children() and daemon.envoy().pid != killed.pid, what="the next Envoy")
        daemon.wait_ready()
        serves_this_host(daemon)
        envoy = query_status(control_socket_path("web", daemon.environment))["children"]["envoy"]
        assert (envoy["restarts"], envoy["causes"].get("not started", 0)) == (1, 0)


def test_a_stop_works_during_the_attack(daemon: Daemon) -> None:
    with crowd(daemon.ports.probes, MANY, SLOW_POST):
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def again(daemon: Daemon) -> None:
    """Re-execute kumadp; while Envoy is being looked at it is refused."""
    poll(lambda: kumadp("reexec", environment=daemon.environment).returncode == 0, what="a re-execution", deadline=60)


def test_a_reexecution_works_during_the_attack(daemon: Daemon) -> None:
    ports = daemon.ports
    with (
        crowd(ports.probes, MANY, SLOW_POST),
        crowd(ports.readiness, MANY, KEEP_ALIVE),
        crowd(ports.dns, MANY, b"\x00"),
    ):
        again(daemon)
        serves_this_host(daemon)
        # Those that come while one program follows the other, too.
        with crowd(ports.readiness, MANY, b"GET"):
            again(daemon)
            serves_this_host(daemon)
    recovers(daemon)


def test_a_crowd_from_one_address_takes_no_place_from_another_address(daemon: Daemon) -> None:
    port = daemon.ports.probes
    # Each with a whole request and none that reads the answer, so that none may go at once.
    whole = b"GET /app/healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 50
    with crowd(port, MANY, whole, source="127.0.0.2"), crowd(port, MANY, SLOW_POST, source="127.0.0.3"):
        for _ in range(20):
            assert get(port, "/app/healthz") == (200, "ok")
    recovers(daemon)
