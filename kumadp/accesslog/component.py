"""Access logs as a component: lines out of the FIFO, each to its destination; none of them waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

import msgspec

from kumadp.accesslog.destination import Destination, DestinationHandover, DestinationLimits
from kumadp.accesslog.fifo import LineReader, open_fifo, remove_unheld
from kumadp.accesslog.records import parse, split_address
from kumadp.host.log.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger("kumadp.accesslog")

# Told of a line that cannot be sent: its beginning may say who writes such lines.
_SHOWN = 80


class AccessLogsHandover(msgspec.Struct, frozen=True):
    """All of it for the program that takes our place, nothing lost: ``rest`` is the beginning of a line."""

    path: str
    descriptor: int
    rest: bytes
    lines: int
    malformed: int
    dropped: int
    sent: int
    destinations: tuple[DestinationHandover, ...]

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What must stay open over execve(2); -1 among them where there is none."""
        return (self.descriptor, *(one.descriptor for one in self.destinations))


class AccessLogs:
    """Reads the FIFO at ``path`` and sends what is written there.

    ``concern`` hears of a destination (its address, or the FIFO's name) what is wrong, and "" when nothing is any more.
    ``flush`` in seconds bounds how long lines are still sent at the end. Raises OSError where there can be no FIFO.
    """

    name = "access logs"

    def __init__(
        self,
        path: Path,
        concern: Callable[[str, str], None],
        *,
        flush: float,
        limits: DestinationLimits | None = None,
        handed: AccessLogsHandover | None = None,
    ) -> None:
        self._path = path
        self._concern = concern
        self._flush = flush
        self._limits = limits or DestinationLimits()
        self._destinations: dict[str, Destination] = {}
        self._handed = handed if handed is not None and handed.path == str(path) else None
        self._throttle = Throttle()
        self._idle: asyncio.TimerHandle | None = None
        self._lines = self._malformed = self._behind = 0
        # Of destinations that are forgotten, and of lines for which there was none.
        self._dropped = self._sent = 0
        if self._handed is not None:
            descriptor, waiting = self._handed.descriptor, self._handed.rest
            self._lines, self._malformed = self._handed.lines, self._handed.malformed
            self._dropped, self._sent = self._handed.dropped, self._handed.sent
        else:
            descriptor, waiting = open_fifo(path)
            for number in handed.descriptors if handed is not None else ():
                with contextlib.suppress(OSError):
                    os.close(number)
        self._reader = LineReader(descriptor, self._take, self._too_long, self._late, waiting)

    async def run(self, up: Callable[[], None]) -> None:
        """Send until cancelled, then what is left, for a bounded time."""
        for known in self._handed.destinations if self._handed is not None else ():
            self._add(known.address, known.host, known.port, known)
        self._handed = None
        self._reader.start()
        up()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._reader.drain()
            self._reader.close()
            await self._finish()

    def hand_over(self) -> AccessLogsHandover:
        """For the next program. Nothing may be read or sent between this and execve(2)."""
        known = self._handed.destinations if self._handed is not None else ()
        return AccessLogsHandover(
            str(self._path),
            self._reader.descriptor,
            self._reader.rest,
            self._lines,
            self._malformed,
            self._dropped,
            self._sent,
            known or tuple(one.hand_over() for one in self._destinations.values()),
        )

    def status(self) -> dict[str, object]:
        """JSON types: lines read, malformed, sent and dropped, each destination; how often the FIFO was full."""
        known = self._destinations
        return {
            "fifo": str(self._path),
            "lines": self._lines,
            "malformed": self._malformed,
            "sent": self._sent + sum(one.sent for one in known.values()),
            "dropped": self._dropped + sum(one.dropped for one in known.values()),
            "behind": self._behind,
            "destinations": {address: one.status() for address, one in known.items()},
        }

    def _take(self, lines: list[bytes]) -> None:
        now = time.monotonic()
        for line in lines:
            if not line:
                continue
            self._lines += 1
            record = parse(line)
            if record is None:
                self._bad(line, "is neither JSON nor address;payload")
                continue
            address, payload = record
            destination = self._destinations.get(address) or self._new(address, line)
            if destination is not None:
                destination.used = now
                destination.put(payload)

    def _new(self, address: str, line: bytes) -> Destination | None:
        place = split_address(address)
        if place is None:
            self._bad(line, "names no host:port")
            return None
        if len(self._destinations) >= self._limits.destinations and not self._forget_one():
            self._dropped += 1
            self._tell("many", f"{address} gets no lines: there are {len(self._destinations)} destinations already")
            return None
        return self._add(address, *place)

    def _add(self, address: str, host: str, port: int, handed: DestinationHandover | None = None) -> Destination:
        made = Destination(
            address, host, port, self._limits, lambda concern: self._concern(f"access log {address}", concern), handed
        )
        self._destinations[address] = made
        self._share()
        if self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(self._limits.idle, self._forget)
        return made

    def _share(self) -> None:
        share = min(self._limits.size, self._limits.total // max(1, len(self._destinations)))
        for one in self._destinations.values():
            one.share = share

    def _forget(self) -> None:
        """Let go of those that nothing was written for since long; one that lines wait for is not idle."""
        now = time.monotonic()
        for address, one in list(self._destinations.items()):
            if not one.waiting and now - one.used >= self._limits.idle:
                self._let_go(address)
        self._idle = None
        if self._destinations:
            oldest = min(one.used for one in self._destinations.values())
            due = max(oldest + self._limits.idle - now, self._limits.idle / 10)
            self._idle = asyncio.get_running_loop().call_later(due, self._forget)

    def _forget_one(self) -> bool:
        unused = [(one.used, address) for address, one in self._destinations.items() if not one.waiting]
        if unused:
            self._let_go(min(unused)[1])
        return bool(unused)

    def _let_go(self, address: str) -> None:
        one = self._destinations.pop(address)
        self._sent += one.sent
        self._dropped += one.dropped
        one.end()
        self._share()

    async def _finish(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        known = self._destinations
        if known:
            flushing = [asyncio.ensure_future(one.flush()) for one in known.values()]
            _, late = await asyncio.wait(flushing, timeout=self._flush)
            for task in late:
                task.cancel()
        for address, one in known.items():
            if left := one.end():
                log.warning("access log %s: %d lines could not be sent any more", address, left)
        with contextlib.suppress(OSError):
            await asyncio.to_thread(remove_unheld, self._path)

    def _bad(self, line: bytes, why: str) -> None:
        self._malformed += 1
        self._tell("malformed", f"a line of access log {why}: {line[:_SHOWN]!r}")

    def _too_long(self) -> None:
        self._malformed += 1
        self._tell("too long", "a line of access log is longer than 1 MiB")

    def _late(self) -> None:
        self._behind += 1
        self._tell("behind", "access logs come faster than they can be read: Envoy keeps them in its memory meanwhile")

    def _tell(self, kind: str, text: str) -> None:
        self._throttle.warn(log, kind, time.monotonic(), text)
