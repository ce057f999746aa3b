"""One way to serve HTTP: bound at once, so that clients wait in the backlog until aiohttp is there."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
from typing import TYPE_CHECKING

from kumadp.errors import PortsTaken, Problem, WorkDirError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from aiohttp import web

BACKLOG = 128
# How long a body that nobody wants is still read (seconds), so that the client sees the answer and not a reset.
LINGERING = 0.5


def bind_tcp(host: str, port: int, purpose: str) -> socket.socket:
    """A listening TCP socket; raises PortsTaken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise PortsTaken([Problem(purpose, f"{host}:{port} cannot be bound: {error.strerror}")]) from None
    return sock


def bind_unix(path: Path) -> socket.socket:
    """A listening Unix socket, mode 0600; a stale file is replaced, a living socket is not. Raises WorkDirError."""
    if path.exists():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise WorkDirError(
                    f"{path} belongs to a kumadp that is running", "give each its own name or --work-dir"
                )
        path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise WorkDirError(
            f"{path} cannot be made: {error.strerror or error}", "choose a shorter or other --work-dir"
        ) from None
    return sock


async def serve(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], sock: socket.socket, up: Callable[[], None]
) -> None:
    """Answer requests on ``sock`` with ``handler`` until cancelled. aiohttp is imported in a thread, in 130 ms."""
    web = await asyncio.to_thread(importlib.import_module, "aiohttp.web")
    server = web.Server(handler, access_log=None, lingering_time=LINGERING)
    runner = web.ServerRunner(server, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        up()
        await asyncio.Event().wait()
    finally:
        with contextlib.suppress(Exception):
            await runner.cleanup()
        sock.close()
