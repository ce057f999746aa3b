"""Binds sockets and serves HTTP on them: bound at once, so that clients wait in the backlog until they are served.

If the previous program handed over a socket of the same address, that is used (`kumadp.host.reexec.inherited_sockets`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import os
import socket
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from kumadp.addresses import ANY_IPV6, socket_address
from kumadp.errors import PortsTaken, Problem, WorkDirError
from kumadp.host.net.acceptor import Acceptor
from kumadp.host.net.connection_limit import MAX_UNIX_CONNECTIONS, ConnectionLimit, ConnectionLimits
from kumadp.host.net.http1.server import Http1Server, ServerOptions
from kumadp.host.net.time_limits import TimeLimits
from kumadp.host.reexec import inherited_sockets as inherited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from kumadp.host.net.http1.server import RequestHandler
    from kumadp.host.net.http_server import Handler

_R = TypeVar("_R")
_A = TypeVar("_A")

# Connections wait here during a re-execution, for seconds on a busy host. If it is full, the kernel drops the SYN, and
# the client retries a second later (tcp(7), listen(2)).
BACKLOG = 1024
# How long requests in flight may take when serving pauses, and how long a new connection may take to send its first
# request (seconds). A kubelet's probe has one second in all, and the next program needs half of it.
_IN_FLIGHT = 1.0
_FIRST_REQUEST = 0.25
# Until a client has sent something, for at most so long, its connection stays with the kernel (tcp(7):
# TCP_DEFER_ACCEPT), and so with whichever program is there when the request comes: in seconds, as a head may take.
_DEFERRED = 1


def bind_tcp(
    host: str,
    port: int,
    purpose: str,
    *,
    beside: socket.socket | None = None,
    reuse_port: bool = False,
    only_ipv6: bool = False,
) -> socket.socket:
    """Return a listening TCP socket; the wildcard of IPv6 includes IPv4 without ``only_ipv6``. Raises PortsTaken.

    ``beside``: a socket of ours with the same port on another address; the wildcard can be bound with it.
    ``reuse_port``: other sockets of this user may be bound to the same address (SO_REUSEPORT).
    """
    return _bind("tcp", host, port, purpose, beside, reuse_port=reuse_port, only_ipv6=only_ipv6)


def bind_udp(host: str, port: int, purpose: str, *, reuse_port: bool = False, only_ipv6: bool = False) -> socket.socket:
    """Return a bound UDP socket, with the options of `bind_tcp`; raises PortsTaken."""
    return _bind("udp", host, port, purpose, reuse_port=reuse_port, only_ipv6=only_ipv6)


def _bind(
    kind: Literal["tcp", "udp"],
    host: str,
    port: int,
    purpose: str,
    beside: socket.socket | None = None,
    *,
    reuse_port: bool = False,
    only_ipv6: bool = False,
) -> socket.socket:
    claimed = inherited.claim(kind, host, port)
    if claimed is not None:
        _defer(claimed, kind, reuse_port=reuse_port)
        return claimed
    if beside is None:
        # The same port on another address of ours would conflict.
        inherited.close_unclaimed(kind, port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    try:
        if kind == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == ANY_IPV6 and (only_ipv6 or kind == "tcp"):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with _shared(sock, beside) if beside is not None else contextlib.nullcontext():
            sock.bind(socket_address(host, port))
            _defer(sock, kind, reuse_port=reuse_port)
            if kind == "tcp":
                sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise PortsTaken([Problem(purpose, f"{host}:{port} cannot be bound: {error.strerror}")]) from None
    inherited.register(kind, host, port, sock)
    return sock


def _defer(sock: socket.socket, kind: str, *, reuse_port: bool) -> None:
    """Have a TCP socket accept clients once they have sent something.

    Not one of several on a port: each new connection belongs to one of them, which may be about to be closed.
    """
    if kind == "tcp" and not reuse_port:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFERRED)


@contextlib.contextmanager
def _shared(*both: socket.socket) -> Iterator[None]:
    """Let the sockets share one port in here; connections go to the one with the more specific address."""
    try:
        for sock in both:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield
    finally:
        for sock in both:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def bind_unix(path: Path) -> socket.socket:
    """Return a listening Unix socket, mode 0600; replaces a stale file, but no live socket. Raises WorkDirError."""
    claimed = inherited.claim("unix", str(path), 0)
    if claimed is not None:
        return claimed
    if path.is_socket() and not path.is_symlink():
        with socket.socket(socket.AF_UNIX) as probe:
            # Non-blocking: a full backlog is EAGAIN at once, instead of a wait without end.
            probe.setblocking(False)
            if probe.connect_ex(str(path)) in {0, errno.EAGAIN, errno.EINPROGRESS}:
                raise WorkDirError(
                    f"{path} belongs to a kumadp that is running", "give each its own name or --work-dir"
                )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        bind_owner_only(sock, path)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise WorkDirError(
            f"{path} cannot be made: {error.strerror or error}", "choose a shorter or other --work-dir"
        ) from None
    inherited.register("unix", str(path), 0, sock)
    return sock


def bind_owner_only(sock: socket.socket, path: Path) -> None:
    """Bind a Unix socket whose file has mode 0600 from the start. Raises OSError.

    Linux gives the file the mode of the socket itself (unix_bind), so no chmod by name is needed, which another user
    could redirect in between.
    """
    os.fchmod(sock.fileno(), 0o600)
    sock.bind(str(path))


async def serve(
    handler: Handler,
    sock: socket.socket,
    up: Callable[[], None],
    *,
    name: str = "HTTP",
    connections: ConnectionLimits | None = None,
    most: int = MAX_UNIX_CONNECTIONS,
    abandon: bool = False,
    prompt: bool = False,
) -> None:
    """Answer requests on ``sock`` with ``handler``, by aiohttp, until cancelled.

    `kumadp.host.net.time_limits.TimeLimits` bounds how long a client may take, and
    `kumadp.host.net.connection_limit.ConnectionLimit` how many connections there are. Its ``name`` is in the log, it is
    added to ``connections``, and ``most`` is its limit at a Unix socket. ``abandon``: cancel a handler whose client has
    disconnected. ``prompt``: the handler answers at once, so this site is paused after all others, and without a wait.
    aiohttp is imported with the first client, who waits in the backlog: it takes 130 ms in a thread, and 9 MB.
    """

    async def start(site: _Site) -> _Server:
        await asyncio.to_thread(importlib.import_module, "kumadp.host.net.http_server")
        from kumadp.host.net.http_server import HttpServer, RunningServer

        server = HttpServer(
            site.answering(handler),
            site.on_connect,
            site.on_first_request,
            site.limit,
            limits=TimeLimits(),
            abandon=abandon,
        )
        running = RunningServer(server, _IN_FLIGHT)
        await running.start()
        return running

    site = _Site(sock, ConnectionLimit.for_socket(name, sock, most), start, prompt=prompt)
    await _serve(site, up, connections, at_first_client=True)


async def serve_http1(
    handler: RequestHandler,
    sock: socket.socket,
    up: Callable[[], None],
    *,
    name: str,
    connections: ConnectionLimits | None = None,
    options: ServerOptions,
    prompt: bool = False,
) -> None:
    """Answer requests on ``sock`` with ``handler``, without aiohttp, until cancelled; the rest is as for `serve`."""

    async def start(site: _Site) -> _Server:
        return Http1Server(site.answering(handler), site.on_connect, site.on_first_request, site.limit, options)

    await _serve(_Site(sock, ConnectionLimit.for_socket(name, sock), start, prompt=prompt), up, connections)


async def _serve(
    site: _Site, up: Callable[[], None], connections: ConnectionLimits | None, *, at_first_client: bool = False
) -> None:
    if connections is not None:
        connections.add(site.limit)
    try:
        if not at_first_client:
            await site.open()
        _sites.add(site)
        up()
        if at_first_client:
            await site.first_client()
            await site.open()
        await asyncio.Event().wait()
    finally:
        _sites.discard(site)
        with contextlib.suppress(Exception):
            await site.close()


@contextlib.asynccontextmanager
async def paused() -> AsyncIterator[None]:
    """Stop accepting in here: earlier requests are answered first, new connections wait in the backlog.

    For execve(2), which would close connections without an answer. If it does not happen, serving resumes. A site with
    slow requests accepts others until those are answered, for at most a second.
    """
    sites = list(_sites)
    await asyncio.gather(*(site.pause() for site in sites if not site.prompt))
    await asyncio.gather(*(site.pause() for site in sites if site.prompt))
    try:
        yield
    finally:
        await asyncio.gather(*(site.resume() for site in sites if site in _sites))


class _Server(Protocol):
    """What serves a site until it is paused or closed."""

    def connection(self, ended: Callable[[], None]) -> asyncio.BaseProtocol:
        """Return the protocol of a new connection."""

    async def shut_down(self) -> None:
        """Close all connections, those with a request under way last."""


class _Site:
    """One socket that is served, and can be paused."""

    def __init__(
        self,
        sock: socket.socket,
        limit: ConnectionLimit,
        start: Callable[[_Site], Awaitable[_Server]],
        *,
        prompt: bool,
    ) -> None:
        self.prompt = prompt
        self.limit = limit
        self._socket = sock
        self._start = start
        self._change = asyncio.Lock()
        self._acceptor: Acceptor | None = None
        self._client: asyncio.Event | None = None
        self._paused = False
        # Connections without a request so far.
        self._silent: set[object] = set()
        self._progress = asyncio.Event()
        self._in_flight: set[asyncio.Future[None]] = set()

    async def first_client(self) -> None:
        """Return once there is a client, who waits in the backlog."""
        self._socket.setblocking(False)
        self._client = client = asyncio.Event()
        loop, number = asyncio.get_running_loop(), self._socket.fileno()

        def note() -> None:
            # It stays readable.
            loop.remove_reader(number)
            client.set()

        loop.add_reader(number, note)
        try:
            await client.wait()
        finally:
            loop.remove_reader(number)

    async def open(self) -> None:
        """Start accepting, unless it is paused."""
        async with self._change:
            if self._paused or self._acceptor is not None:
                return
            # It ends connections; accepting them is ours.
            self._server = await self._start(self)
            self._acceptor = Acceptor(self._socket, self.limit, self._server.connection)
            self._acceptor.open()

    async def resume(self) -> None:
        """Start accepting again; what still waits for its first client goes on with that."""
        self._paused = False
        if self._client is None or self._client.is_set():
            await self.open()

    async def pause(self) -> None:
        """Stop accepting and close all connections; the socket stays open."""
        self._paused = True
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=_IN_FLIGHT)
        async with self._change:
            acceptor, self._acceptor = self._acceptor, None
        if acceptor is None:
            return
        await acceptor.close()
        await _turns()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_REQUEST):
                while self._silent:
                    self._progress.clear()
                    await self._progress.wait()
        # The time may be over because the loop was busy; then requests that arrived are still unread.
        await _turns()
        await self._server.shut_down()
        await _turns()

    async def close(self) -> None:
        """Stop serving and close the socket."""
        if self._acceptor is not None:
            self._acceptor.stop()
            await self._server.shut_down()
        self._socket.close()

    def answering(self, handler: Callable[[_R], Awaitable[_A]]) -> Callable[[_R], Awaitable[_A]]:
        """Return the handler, whose requests under way are noted."""

        async def answer(request: _R) -> _A:
            answered = asyncio.get_running_loop().create_future()
            self._in_flight.add(answered)
            try:
                return await handler(request)
            finally:
                answered.set_result(None)
                self._in_flight.discard(answered)

        return answer

    def on_connect(self, connection: object) -> None:
        """Note a connection."""
        self._silent.add(connection)

    def on_first_request(self, connection: object) -> None:
        """Note a connection's first request, or its end."""
        self._silent.discard(connection)
        self._progress.set()


async def _turns() -> None:
    """Let the loop run its next turns: it may have connections to set up and answers to write."""
    for _ in range(3):
        await asyncio.sleep(0)


_sites: set[_Site] = set()
