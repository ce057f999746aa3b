"""A real kumadp with a real datagram socket in systemd's place."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import Ports, get, run_kumadp, workload, write_mesh
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


class Manager:
    """Receives the notifications that the service manager would get."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while data := self._socket.recv(4096):
            self.received.append(dict(line.split("=", 1) for line in data.decode().split("\n")))

    def states(self) -> list[str]:
        return [name for message in self.received for name in message if name in {"READY", "RELOADING", "STOPPING"}]

    def count(self, name: str) -> int:
        return sum(name in message for message in self.received)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    running = Manager(tmp_path / "notify")
    yield running
    running.close()


def test_systemd_is_notified_of_ready_reload_stop_and_watchdog(tmp_path: Path, manager: Manager) -> None:
    ports = Ports.take()
    environ = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "600000"}
    with workload("web") as app:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        arguments = ("--standalone", str(mesh), "--name=web", "--drain-time=30s")
        with run_kumadp(tmp_path, ports, *arguments, environment=environ) as daemon:
            daemon.wait_ready()
            poll(lambda: manager.states() == ["READY"], what="the word READY")
            assert get(ports.inbound)[0] == 200
            beats = manager.count("WATCHDOG")
            poll(lambda: manager.count("WATCHDOG") >= beats + 3, what="signs of life")
            os.kill(daemon.pid, signal.SIGHUP)
            poll(lambda: manager.states() == ["READY", "RELOADING", "READY"], what="a notified reload")
            before = len(manager.received)
            daemon.kill_envoy()
            poll(
                lambda: any(
                    message.get("STATUS", "").startswith("STARTING: envoy") for message in manager.received[before:]
                ),
                what="the reported death of Envoy",
            )
            daemon.wait_ready()
            os.kill(daemon.pid, signal.SIGUSR1)
            poll(lambda: "re-executing" in daemon.output(), what="a re-execution")
            beats = manager.count("WATCHDOG")
            poll(lambda: manager.count("WATCHDOG") >= beats + 3, what="signs of life after it")
            daemon.wait_ready()
            daemon.terminate()
            poll(lambda: manager.states()[-1] == "STOPPING", what="the word STOPPING")
            # Systemd gives a unit that drains more time for as long as its loop lives.
            poll(lambda: manager.count("EXTEND_TIMEOUT_USEC") >= 3, what="more time requested")
            daemon.terminate()
            assert daemon.wait() == 0
    assert manager.received[-1]["STATUS"] == "STOPPED: stop requested by signal"


def test_a_failed_start_reports_its_reason_as_status(tmp_path: Path, manager: Manager) -> None:
    ports = Ports.take()
    with workload("web") as app, socket.create_server(("127.0.0.1", ports.readiness)):
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        environ = {"NOTIFY_SOCKET": str(manager.path)}
        with run_kumadp(tmp_path, ports, "--standalone", str(mesh), "--name=web", environment=environ) as daemon:
            assert daemon.wait() == 71
    assert manager.states() == ["STOPPING"]
    assert str(ports.readiness) in manager.received[-1]["STATUS"]
