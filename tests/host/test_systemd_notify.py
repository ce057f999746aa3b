"""sd_notify(3) with a real datagram socket in the service manager's place."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from kumadp.host.systemd_notify import Notifier, status, watchdog_interval

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Manager:
    """Reads its notifications."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(5)
        self.socket.bind(address)

    def received(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().split("\n"))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    actual = Manager(str(tmp_path / "notify"))
    yield actual
    actual.socket.close()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_three_times_in_its_time(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_interval(environ) == seconds


async def test_states_are_sent_as_sd_notify_requires(tmp_path: Path, manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    notifier.ready("traffic flows")
    assert manager.received() == {"READY": "1", "STATUS": "traffic flows"}
    notifier.reloading("again")
    received = manager.received()
    assert received.pop("MONOTONIC_USEC").isdigit()
    assert received == {"RELOADING": "1", "STATUS": "again"}
    notifier.stopping("the end")
    assert manager.received() == {"STOPPING": "1", "STATUS": "the end"}
    notifier.alive()
    assert manager.received() == {"WATCHDOG": "1"}
    notifier.extend(2.5)
    assert manager.received() == {"EXTEND_TIMEOUT_USEC": "2500000"}
    notifier.close()


async def test_an_abstract_socket_is_notified_too() -> None:
    name = f"kumadp-test-{os.getpid()}"
    manager = Manager("\0" + name)
    notifier = Notifier({"NOTIFY_SOCKET": "@" + name})
    notifier.alive()
    assert manager.received() == {"WATCHDOG": "1"}
    notifier.close()
    manager.socket.close()


async def test_what_the_manager_does_not_read_waits_for_it_and_the_oldest_is_forgotten(
    tmp_path: Path, manager: Manager
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    for number in range(1000):
        notifier.status(str(number))
    manager.socket.setblocking(False)
    received: list[int] = []
    async with asyncio.timeout(10):
        while 999 not in received:
            try:
                received.append(int(manager.received()["STATUS"]))
            except BlockingIOError:
                await asyncio.sleep(0)
    assert received == sorted(received)
    assert len(received) < 1000
    notifier.close()


async def test_a_manager_that_has_gone_is_notified_again_once_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Manager(str(tmp_path / "notify"))
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    notifier.alive()
    first.socket.close()
    (tmp_path / "notify").unlink()
    notifier.alive()
    assert "cannot be notified" in caplog.text
    second = Manager(str(tmp_path / "notify"))
    notifier.ready("here")
    assert second.received()["READY"] == "1"
    notifier.close()
    second.socket.close()


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
async def test_without_a_socket_nothing_is_reported(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    assert not notifier.listens
    notifier.ready("nobody receives it")
    notifier.close()


def test_a_status_is_one_line() -> None:
    assert status("one\ntwo\x1b[1m") == "STATUS=one two [1m"
    assert len(status("x" * 5000)) < 2000
