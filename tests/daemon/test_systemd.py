"""When the timeout of systemd is extended, with a socket in its place."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from kumadp.core.phases import Phase
from kumadp.core.status import Status
from kumadp.daemon import systemd
from kumadp.daemon.systemd import SystemdNotifier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from kumadp.core.context import Context


class Scene:
    """A notifier, and the service manager's socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.status = Status("web", "standalone")
        previous = SimpleNamespace(reexecuted=False, ready=False)
        environ = {"NOTIFY_SOCKET": str(path)}
        context = SimpleNamespace(status=self.status, environ=environ, previous=previous)
        self.notifier = SystemdNotifier(cast("Context", context))

    def extended(self, event: Callable[[], object]) -> int:
        """How often more time was requested because of ``event``."""
        event()
        count = 0
        while True:
            try:
                count += self.socket.recv(4096) == b"EXTEND_TIMEOUT_USEC=15000000"
            except BlockingIOError:
                return count

    def progress(self) -> None:
        for callback in self.status.progressed:
            callback()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    running = Scene(tmp_path / "notify")
    yield running
    running.notifier.close()
    running.socket.close()


async def test_progress_extends_the_timeout_of_a_start_and_of_a_reload(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_EXTEND_EACH", 0.0)
    assert scene.extended(scene.progress) == 1
    assert scene.extended(scene.progress) == 1
    # It was started: systemd would extend the time that it may run.
    scene.status.move(Phase.READY, "test")
    assert scene.extended(scene.progress) == 0
    with scene.notifier.reloading():
        assert scene.extended(scene.progress) == 1
    assert scene.extended(scene.progress) == 0


async def test_the_timeout_is_extended_now_and_then(scene: Scene) -> None:
    def often() -> None:
        for _ in range(100):
            scene.progress()

    assert scene.extended(often) == 1
