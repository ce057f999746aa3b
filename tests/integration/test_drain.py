"""A drain ends when the work does: a real Envoy with connections, and with those that do not count."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import Daemon, Ports, get, run_kumadp, workload, write_mesh
from tests.support.poll import poll
from tests.support.standalone import logged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def mesh(tmp_path: Path, ports: Ports) -> Iterator[tuple[str, ...]]:
    """Flags of a data plane in front of a workload."""
    with workload("web") as app:
        folder = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        yield ("--standalone", str(folder), "--name=web", "--drain-time=300s")


def end(daemon: Daemon) -> None:
    assert daemon.wait() == 0, daemon.output()


def test_an_open_connection_prolongs_the_drain_until_it_closes(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...]
) -> None:
    with run_kumadp(tmp_path, ports, *mesh, "--min-drain-time=0s") as daemon:
        daemon.wait_ready()
        with socket.create_connection(("127.0.0.1", ports.outbound)) as connection:
            poll(
                lambda: "cx_active: 1" in get(ports.admin, "/stats?filter=listener.*cx_active")[1], what="a connection"
            )
            daemon.terminate()
            logged(daemon, "draining for at most 300.0 s")
            assert get(ports.inbound) == (200, "web")
            # A scraper of the admin is connected each time that the drain looks; this is one more.
            assert get(ports.admin, "/stats")[0] == 200
            assert daemon.process.poll() is None
            connection.shutdown(socket.SHUT_RDWR)
        logged(daemon, "nobody is connected any more: the drain ends")
        end(daemon)


def test_without_connections_the_drain_takes_the_minimum_time(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...]
) -> None:
    with run_kumadp(tmp_path, ports, *mesh, "--min-drain-time=1s") as daemon:
        daemon.wait_ready()
        daemon.terminate()
        logged(daemon, "draining for at most 300.0 s")
        assert get(ports.inbound) == (200, "web")
        logged(daemon, "nobody is connected any more: the drain ends")
        end(daemon)


def test_during_the_pre_drain_delay_only_readiness_changes(tmp_path: Path, ports: Ports, mesh: tuple[str, ...]) -> None:
    with run_kumadp(tmp_path, ports, *mesh, "--pre-drain-delay=300s", "--min-drain-time=0s") as daemon:
        daemon.wait_ready()
        daemon.terminate()
        poll(lambda: get(ports.readiness, "/ready") == (503, "TERMINATING"), what="TERMINATING")
        # Envoy does not fail its health checks yet, so no client is to disconnect.
        assert get(ports.admin, "/ready")[0] == 200
        assert get(ports.inbound) == (200, "web")
        daemon.process.send_signal(signal.SIGTERM)
        end(daemon)
