"""One TCP destination of access logs: a bounded queue, one connection, and backoff while it is unreachable.

If the queue is full the oldest lines are dropped: once reachable again, the destination gets the most recent ones in
order. A line whose beginning was sent stays, and is sent again as a whole if the connection broke within it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from kumadp.accesslog.lookup import look_up
from kumadp.addresses import connect_address, is_ip
from kumadp.host.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

# Bytes per call of send(2).
_BATCH = 64 * 1024
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 10.0
# A connection that lasted so long (seconds) resets the backoff.
_STABLE_AFTER = 1.0


class DestinationLimits(Struct, frozen=True):
    """Limits of one destination: ``lines`` and ``size`` (bytes) of its queue, ``connect`` seconds for a connection.

    After ``silent`` seconds without an acknowledgement the peer is disconnected. ``total`` bytes are shared by all
    destinations, of which there are at most ``destinations``; one without a line for ``idle`` seconds is removed.
    """

    lines: int = 10_000
    size: int = 4 << 20
    total: int = 16 << 20
    destinations: int = 32
    connect: float = 5.0
    silent: float = 30.0
    idle: float = 600.0


class DestinationHandover(msgspec.Struct, frozen=True):
    """A destination for the next program: of the first ``sending`` lines, ``offset`` bytes have been sent."""

    address: str
    host: str
    port: int
    descriptor: int
    sending: int
    offset: int
    lines: tuple[bytes, ...]
    sent: int
    dropped: int


class Destination:
    """Sends lines to ``host`` and ``port``; ``set_warning`` is called with its fault, and with "" once it works."""

    def __init__(
        self,
        address: str,
        host: str,
        port: int,
        limits: DestinationLimits,
        set_warning: Callable[[str], None],
        handover: DestinationHandover | None = None,
    ) -> None:
        self.address, self._host, self._port = address, host, port
        self._limits = limits
        self._set_warning = set_warning
        self._queue: collections.deque[bytes] = collections.deque()
        self._size = 0
        self._sending: list[bytes] = []
        self._unsent = memoryview(b"")
        self._sock: socket.socket | None = None
        self._closed: OSError | None = None
        self._has_lines, self._writable = asyncio.Event(), asyncio.Event()
        self._flushing, self._all_sent = asyncio.Event(), asyncio.Event()
        self._lookup: asyncio.Future[list[tuple[int, tuple[str, int]]]] | None = None
        self.share = limits.size
        self.sent = self.dropped = self.connections = self.failures = 0
        self.last_error, self.connected_since = "", 0.0
        self.used = time.monotonic()
        if handover is not None:
            self._adopt(handover)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"access log {address}")

    @property
    def waiting(self) -> int:
        """The number of lines that are not sent yet."""
        return len(self._queue) + len(self._sending)

    def put(self, line: bytes) -> None:
        """Queue a line; if the queue is full the oldest lines are dropped."""
        self._queue.append(line)
        self._size += len(line)
        while len(self._queue) > self._limits.lines or (self._size > self.share and self._queue):
            self._size -= len(self._queue.popleft())
            self.dropped += 1
        self._all_sent.clear()
        self._has_lines.set()

    async def flush(self) -> None:
        """Return once all lines are sent, or one more attempt to connect has failed."""
        self._flushing.set()
        if self.waiting:
            await self._all_sent.wait()

    def end(self) -> int:
        """Close the connection; return how many lines were not sent."""
        self._task.cancel()
        self._put_back()
        self._set_warning("")
        unsent = self.waiting
        self.dropped += unsent
        return unsent

    def hand_over(self) -> DestinationHandover:
        """Return the state for the next program; its descriptor must stay open over execve(2)."""
        return DestinationHandover(
            self.address,
            self._host,
            self._port,
            self._sock.fileno() if self._sock is not None and self._closed is None else -1,
            len(self._sending),
            sum(map(len, self._sending)) - len(self._unsent),
            (*self._sending, *self._queue),
            self.sent,
            self.dropped,
        )

    def status(self) -> dict[str, object]:
        """Return the status in JSON types; times in seconds since 1970."""
        return {
            "connected_since": round(self.connected_since, 3) or None,
            "waiting": self.waiting,
            "sent": self.sent,
            "dropped": self.dropped,
            "connections": self.connections,
            "failures": self.failures,
            "last_error": self.last_error,
        }

    def _adopt(self, handover: DestinationHandover) -> None:
        self.sent, self.dropped = handover.sent, handover.dropped
        first, rest = list(handover.lines[: handover.sending]), handover.lines[handover.sending :]
        if handover.descriptor >= 0:
            self._sock = socket.socket(fileno=handover.descriptor)
            self._sending, self._unsent = first, memoryview(b"".join(first))[handover.offset :]
        else:
            rest = (*first, *rest)
        self._queue.extend(rest)
        self._size = sum(map(len, rest))

    async def _run(self) -> None:
        backoff = Backoff(_FIRST_WAIT, _LONGEST_WAIT)
        while True:
            try:
                if self._sock is None:
                    await self._wait_until(self._has_lines, lambda: bool(self._queue))
                    self._sock = await self._connect()
            except TimeoutError:
                self._failed(f"no connection within {self._limits.connect:g} s")
            except OSError as error:
                self._failed(f"no connection: {_reason(error)}")
            else:
                begun = time.monotonic()
                await self._serve(self._sock)
                if time.monotonic() - begun > _STABLE_AFTER:
                    backoff.reset()
                    continue
            if self._flushing.is_set():
                self._all_sent.set()
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.wait()):
                    await self._flushing.wait()

    async def _connect(self) -> socket.socket:
        """Connect to the first address that accepts, each with its share of the time. Raises OSError."""
        async with asyncio.timeout(self._limits.connect):
            addresses = await self._addresses()
            end = time.monotonic() + self._limits.connect
            failure: OSError = OSError("no address")
            for number, (family, address) in enumerate(addresses):
                sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                try:
                    _tune(sock, self._limits.silent)
                    async with asyncio.timeout((end - time.monotonic()) / (len(addresses) - number)):
                        await asyncio.get_running_loop().sock_connect(sock, address)
                except TimeoutError:
                    sock.close()
                    failure = OSError(f"no answer from {address[0]}")
                except OSError as error:
                    sock.close()
                    failure = error
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
            raise failure

    async def _addresses(self) -> list[tuple[int, tuple[str, int]]]:
        if is_ip(self._host):
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            return [(family, connect_address(self._host, self._port))]
        # A lookup that still runs is reused: a dead resolver must not accumulate threads.
        self._lookup = self._lookup or look_up(self._host, self._port)
        try:
            addresses = await asyncio.shield(self._lookup)
        finally:
            if self._lookup.done():
                self._lookup = None
        return addresses

    async def _serve(self, sock: socket.socket) -> None:
        """Send lines until the connection breaks; lines that were not sent completely return to the queue."""
        loop = asyncio.get_running_loop()
        self._closed = None
        self.connections += 1
        self.connected_since = time.time()
        # A destination that accepts connections and closes them does not work.
        stable = loop.call_later(_STABLE_AFTER, self._set_warning, "")
        loop.add_reader(sock, self._on_readable, sock)
        try:
            await self._feed(sock)
        except OSError as error:
            # Without queued lines nothing is lost when the destination closes.
            if self.waiting:
                self._failed(f"connection lost: {_reason(error)}")
        finally:
            stable.cancel()
            loop.remove_reader(sock)
            loop.remove_writer(sock)
            sock.close()
            self._sock, self.connected_since = None, 0.0
            self._put_back()

    async def _feed(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._unsent:
                self.sent += len(self._sending)
                self._sending = []
                if not self._queue:
                    self._all_sent.set()
                    await self._wait_until(self._has_lines, lambda: bool(self._queue or self._closed))
                self._next_batch()
            if self._closed is not None:
                raise self._closed
            try:
                self._unsent = self._unsent[sock.send(self._unsent) :]
            except BlockingIOError:
                loop.add_writer(sock, self._writable.set)
                await self._wait_until(self._writable, lambda: False)
                loop.remove_writer(sock)

    async def _wait_until(self, event: asyncio.Event, condition: Callable[[], bool]) -> None:
        event.clear()
        if not condition():
            await event.wait()

    def _next_batch(self) -> None:
        size = 0
        while self._queue and size < _BATCH:
            line = self._queue.popleft()
            size += len(line)
            self._sending.append(line)
        self._size -= size
        self._unsent = memoryview(b"".join(self._sending))

    def _put_back(self) -> None:
        done = sum(map(len, self._sending)) - len(self._unsent)
        while self._sending and done >= len(self._sending[0]):
            done -= len(self._sending.pop(0))
            self.sent += 1
        self._queue.extendleft(reversed(self._sending))
        self._size += sum(map(len, self._sending))
        self._sending, self._unsent = [], memoryview(b"")

    def _on_readable(self, sock: socket.socket) -> None:
        """Discard what the destination sends, and notice that it has closed before a line is lost."""
        try:
            if sock.recv(4096):
                return
            self._closed = ConnectionResetError("closed by the destination")
        except BlockingIOError:
            return
        except OSError as error:
            self._closed = error
        asyncio.get_running_loop().remove_reader(sock)
        self._has_lines.set()
        self._writable.set()

    def _failed(self, why: str) -> None:
        self.failures += 1
        self.last_error = why
        self._set_warning(f"{why}; its lines are queued, and the oldest are dropped if there are too many")


def _tune(sock: socket.socket, silent: float) -> None:
    """Detect a destination that has vanished silently, with unacknowledged lines and without (tcp(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(silent)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(silent / 3)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silent * 1000))


def _reason(error: OSError) -> str:
    # asyncio adds the address to the text, and errors of the resolver have numbers below 0.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
