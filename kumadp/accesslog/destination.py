"""One TCP destination of access logs: a bounded queue, one connection, and pauses that grow while it is dead.

Where the queue is full the oldest lines go: when the destination is back it has what happened last, in order. A line
whose beginning was sent already stays, and is sent whole again where the connection broke in it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from kumadp.accesslog.lookup import look_up
from kumadp.addresses import connect_address, is_ip
from kumadp.host.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

# What is handed to the kernel at once, in bytes.
_BATCH = 64 * 1024
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 10.0
# A connection that lived so long was a good one (seconds).
_GOOD = 1.0


@dataclass(frozen=True, slots=True)
class DestinationLimits:
    """Of one destination: lines and bytes that wait, seconds to connect, and until a peer that is silent is given up.

    ``total`` bytes are shared by all destinations, of which there are at most ``destinations``; one that got no line
    for ``idle`` seconds is forgotten.
    """

    lines: int = 10_000
    size: int = 4 << 20
    total: int = 16 << 20
    destinations: int = 32
    connect: float = 5.0
    silent: float = 30.0
    idle: float = 600.0


class DestinationHandover(msgspec.Struct, frozen=True):
    """A destination for the program that takes our place: of the first ``sending`` lines, ``offset`` bytes are sent."""

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
    """``concern`` hears what is wrong with it, and "" when nothing is any more."""

    def __init__(
        self,
        address: str,
        host: str,
        port: int,
        limits: DestinationLimits,
        concern: Callable[[str], None],
        handed: DestinationHandover | None = None,
    ) -> None:
        self.address, self._host, self._port = address, host, port
        self._limits = limits
        self._concern = concern
        self._queue: collections.deque[bytes] = collections.deque()
        self._size = 0
        self._sending: list[bytes] = []
        self._left = memoryview(b"")
        self._sock: socket.socket | None = None
        self._closed: OSError | None = None
        self._lines, self._free = asyncio.Event(), asyncio.Event()
        self._hurry, self._done = asyncio.Event(), asyncio.Event()
        self._looking: asyncio.Future[list[tuple[int, tuple[str, int]]]] | None = None
        self.share = limits.size
        self.sent = self.dropped = self.connections = self.failures = 0
        self.last_error, self.connected_since = "", 0.0
        self.used = time.monotonic()
        if handed is not None:
            self._take_over(handed)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"access log {address}")

    @property
    def waiting(self) -> int:
        """Lines that are not sent yet."""
        return len(self._queue) + len(self._sending)

    def put(self, line: bytes) -> None:
        """Send it when its turn comes; where there is no room the oldest go."""
        self._queue.append(line)
        self._size += len(line)
        while len(self._queue) > self._limits.lines or (self._size > self.share and self._queue):
            self._size -= len(self._queue.popleft())
            self.dropped += 1
        self._done.clear()
        self._lines.set()

    async def flush(self) -> None:
        """Return once all is sent, or one more attempt to connect has failed."""
        self._hurry.set()
        if self.waiting:
            await self._done.wait()

    def end(self) -> int:
        """Give up; how many lines were not sent."""
        self._task.cancel()
        self._put_back()
        self._concern("")
        left = self.waiting
        self.dropped += left
        return left

    def hand_over(self) -> DestinationHandover:
        """For the next program; its descriptor must stay open over execve(2)."""
        return DestinationHandover(
            self.address,
            self._host,
            self._port,
            self._sock.fileno() if self._sock is not None and self._closed is None else -1,
            len(self._sending),
            sum(map(len, self._sending)) - len(self._left),
            (*self._sending, *self._queue),
            self.sent,
            self.dropped,
        )

    def status(self) -> dict[str, object]:
        """JSON types; times in seconds since 1970."""
        return {
            "connected_since": round(self.connected_since, 3) or None,
            "waiting": self.waiting,
            "sent": self.sent,
            "dropped": self.dropped,
            "connections": self.connections,
            "failures": self.failures,
            "last_error": self.last_error,
        }

    def _take_over(self, handed: DestinationHandover) -> None:
        self.sent, self.dropped = handed.sent, handed.dropped
        first, rest = list(handed.lines[: handed.sending]), handed.lines[handed.sending :]
        if handed.descriptor >= 0:
            self._sock = socket.socket(fileno=handed.descriptor)
            self._sending, self._left = first, memoryview(b"".join(first))[handed.offset :]
        else:
            rest = (*first, *rest)
        self._queue.extend(rest)
        self._size = sum(map(len, rest))

    async def _run(self) -> None:
        backoff = Backoff(_FIRST_WAIT, _LONGEST_WAIT)
        while True:
            try:
                if self._sock is None:
                    await self._some(self._lines, lambda: bool(self._queue))
                    self._sock = await self._connect()
            except TimeoutError:
                self._failed(f"no connection within {self._limits.connect:g} s")
            except OSError as error:
                self._failed(f"no connection: {_reason(error)}")
            else:
                begun = time.monotonic()
                await self._serve(self._sock)
                if time.monotonic() - begun > _GOOD:
                    backoff.reset()
                    continue
            if self._hurry.is_set():
                self._done.set()
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff.wait()):
                    await self._hurry.wait()

    async def _connect(self) -> socket.socket:
        """A connection to the first address that takes one, each having its share of the time. Raises OSError."""
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
        # One that still runs is waited for again: a dead resolver must not gather threads.
        self._looking = self._looking or look_up(self._host, self._port)
        try:
            found = await asyncio.shield(self._looking)
        finally:
            if self._looking.done():
                self._looking = None
        return found

    async def _serve(self, sock: socket.socket) -> None:
        """Send what there is until the connection breaks; what was not sent whole is put back."""
        loop = asyncio.get_running_loop()
        self._closed = None
        self.connections += 1
        self.connected_since = time.time()
        # One that takes connections and ends them is no good one.
        good = loop.call_later(_GOOD, self._concern, "")
        loop.add_reader(sock, self._hear, sock)
        try:
            await self._feed(sock)
        except OSError as error:
            # A destination that leaves while there is nothing for it takes nothing along.
            if self.waiting:
                self._failed(f"connection lost: {_reason(error)}")
        finally:
            good.cancel()
            loop.remove_reader(sock)
            loop.remove_writer(sock)
            sock.close()
            self._sock, self.connected_since = None, 0.0
            self._put_back()

    async def _feed(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._left:
                self.sent += len(self._sending)
                self._sending = []
                if not self._queue:
                    self._done.set()
                    await self._some(self._lines, lambda: bool(self._queue or self._closed))
                self._next_batch()
            if self._closed is not None:
                raise self._closed
            try:
                self._left = self._left[sock.send(self._left) :]
            except BlockingIOError:
                loop.add_writer(sock, self._free.set)
                await self._some(self._free, lambda: False)
                loop.remove_writer(sock)

    async def _some(self, event: asyncio.Event, met: Callable[[], bool]) -> None:
        event.clear()
        if not met():
            await event.wait()

    def _next_batch(self) -> None:
        size = 0
        while self._queue and size < _BATCH:
            line = self._queue.popleft()
            size += len(line)
            self._sending.append(line)
        self._size -= size
        self._left = memoryview(b"".join(self._sending))

    def _put_back(self) -> None:
        done = sum(map(len, self._sending)) - len(self._left)
        while self._sending and done >= len(self._sending[0]):
            done -= len(self._sending.pop(0))
            self.sent += 1
        self._queue.extendleft(reversed(self._sending))
        self._size += sum(map(len, self._sending))
        self._sending, self._left = [], memoryview(b"")

    def _hear(self, sock: socket.socket) -> None:
        """A destination says nothing that is wanted; but that it has left is seen here, before a line is lost."""
        try:
            if sock.recv(4096):
                return
            self._closed = ConnectionResetError("closed by the destination")
        except BlockingIOError:
            return
        except OSError as error:
            self._closed = error
        asyncio.get_running_loop().remove_reader(sock)
        self._lines.set()
        self._free.set()

    def _failed(self, why: str) -> None:
        self.failures += 1
        self.last_error = why
        self._concern(f"{why}; its lines wait, and the oldest are dropped where there is no room")


def _tune(sock: socket.socket, silent: float) -> None:
    """Find out about a destination that is gone without a word, with lines under way and without (tcp(7))."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(silent)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(silent / 3)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silent * 1000))


def _reason(error: OSError) -> str:
    # asyncio puts the address into the text, and what a resolver says has numbers of its own, below 0.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
