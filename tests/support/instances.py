"""Control sockets of a host of the test's own, without data planes behind them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from kumadp.core.status import Status
from kumadp.daemon.control import ControlServer
from kumadp.host.net.socket_paths import socket_name
from tests.support.command import kumadp

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from kumadp.daemon.control import Action


class Host:
    """A folder of control sockets, as one host has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "kumadp"
        self.folder.mkdir(mode=0o700)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return kumadp(*arguments, environment={"XDG_RUNTIME_DIR": str(self.folder.parent)})

    @contextlib.contextmanager
    def instance(self, name: str, status: Status | None = None, **actions: Action) -> Iterator[None]:
        """A control socket that does these things."""
        control = ControlServer(
            self.folder / socket_name(name), (status or Status(name, "standalone")).snapshot, actions
        )
        started, ended = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()

        async def serve() -> None:
            server = asyncio.create_task(control.run(started.set))
            await ended.wait()
            server.cancel()
            await asyncio.wait({server})

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        try:
            assert started.wait(10)
            yield
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join()
            loop.close()
