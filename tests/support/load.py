"""Load over loopback that counts what fails: raw asyncio streams, so that nothing is retried behind the test's back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST = b"GET / HTTP/1.1\r\nhost: load\r\n\r\n"
ANSWERED_WITHIN = 10.0
# More would measure the host instead: Kuma lets at most 1024 requests wait for a service and rejects the rest.
MOST_AT_ONCE = 100


@dataclass
class Tally:
    """What a load saw: answers by body, failures by what was wrong."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def answered(self) -> int:
        """How many requests were answered with 200."""
        return self.answers.total()


class Pace:
    """Has a loop run so many times per second."""

    def __init__(self, rate: float) -> None:
        self._every = 1 / rate
        self._due = time.monotonic()

    async def wait(self) -> None:
        """Wait until the next turn."""
        # What a busy host made late is made up for, by a fifth of a second at most.
        self._due = max(self._due + self._every, time.monotonic() - 0.2)
        await asyncio.sleep(self._due - time.monotonic())


class _Connection:
    """One HTTP/1.1 connection; raises OSError or EOFError where the server breaks it, ValueError for a bad answer."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self) -> str:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._to)
        reader, writer = self._streams
        writer.write(REQUEST)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        lines = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            self.close()
        if " 200 " not in lines[0]:
            raise ValueError(lines[0])
        return body.decode()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class _Load:
    def __init__(self, host: str, port: int, limit: int) -> None:
        self._to = (host, port)
        self._remaining = limit
        self._stopping = False
        self.tally = Tally()

    async def keep_alive(self, pause: float) -> None:
        """Send one request after the other on one connection, renewed after ``connection: close``."""
        connection = _Connection(*self._to)
        try:
            while self._take():
                await self._count(connection)
                await asyncio.sleep(pause)
        finally:
            connection.close()

    async def new_connections(self, rate: float) -> None:
        """Send ``rate`` requests per second, each on a new connection."""
        pace = Pace(rate)
        room = asyncio.Semaphore(MOST_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            while self._take():
                await room.acquire()
                group.create_task(self._once()).add_done_callback(lambda _task: room.release())
                await pace.wait()

    async def _once(self) -> None:
        connection = _Connection(*self._to)
        try:
            await self._count(connection)
        finally:
            connection.close()

    async def _count(self, connection: _Connection) -> None:
        try:
            async with asyncio.timeout(ANSWERED_WITHIN):
                self.tally.answers[await connection.send()] += 1
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self.tally.failures[f"{type(error).__name__}: {error}"] += 1
            connection.close()

    def _take(self) -> bool:
        self._remaining -= 1
        return self._remaining >= 0 and not self._stopping

    def stop(self) -> None:
        """No further requests; those under way are finished."""
        self._stopping = True


@contextlib.asynccontextmanager
async def load(
    port: int,
    *,
    rate: float = 0.0,
    connections: int = 0,
    pause: float = 0.0,
    limit: int = 60_000,
    host: str = "127.0.0.1",
) -> AsyncIterator[Tally]:
    """Load while the block runs, ``limit`` requests of each kind at most; the tally is whole when the block is left.

    ``rate`` requests per second on a new connection each, and ``connections`` connections that are kept alive,
    with ``pause`` seconds between two requests of one.
    """
    fresh, persistent = _Load(host, port, limit), _Load(host, port, limit)
    persistent.tally = fresh.tally
    tasks = [asyncio.create_task(persistent.keep_alive(pause)) for _ in range(connections)]
    if rate:
        tasks.append(asyncio.create_task(fresh.new_connections(rate)))
    try:
        yield fresh.tally
    finally:
        fresh.stop()
        persistent.stop()
        await asyncio.gather(*tasks)
