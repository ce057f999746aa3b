"""Access logs as a component: forwards each line of the FIFO to its destination; none waits for another."""

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

# Bytes of a malformed line that are logged: the beginning often shows who writes such lines.
_SHOWN = 80


class AccessLogsHandover(msgspec.Struct, frozen=True):
    """The state for the next program at a re-execution, without any loss: ``rest`` is the beginning of a line."""

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
        """The descriptors that must stay open over execve(2); -1 for a destination without a connection."""
        return (self.descriptor, *(destination.descriptor for destination in self.destinations))


class AccessLogs:
    """Reads the FIFO at ``path`` and forwards its lines.

    ``set_warning`` is called with the name of a destination and its fault, or "" once it works. ``flush``: for how many
    seconds at most lines are still sent at the end. ``handover``: the state of the previous program. Raises OSError if
    the FIFO cannot be created.
    """

    name = "access logs"

    def __init__(
        self,
        path: Path,
        set_warning: Callable[[str, str], None],
        *,
        flush: float,
        limits: DestinationLimits | None = None,
        handover: AccessLogsHandover | None = None,
    ) -> None:
        self._path = path
        self._set_warning = set_warning
        self._flush = flush
        self._limits = limits or DestinationLimits()
        self._destinations: dict[str, Destination] = {}
        self._handover = handover if handover is not None and handover.path == str(path) else None
        self._throttle = Throttle()
        self._idle: asyncio.TimerHandle | None = None
        self._lines = self._malformed = self._behind = 0
        # Of removed destinations, and of lines that got none.
        self._dropped = self._sent = 0
        if self._handover is not None:
            descriptor, waiting = self._handover.descriptor, self._handover.rest
            self._lines, self._malformed = self._handover.lines, self._handover.malformed
            self._dropped, self._sent = self._handover.dropped, self._handover.sent
        else:
            descriptor, waiting = open_fifo(path)
            for number in handover.descriptors if handover is not None else ():
                with contextlib.suppress(OSError):
                    os.close(number)
        self._reader = LineReader(descriptor, self._handle_lines, self._too_long, self._note_behind, waiting)

    async def run(self, up: Callable[[], None]) -> None:
        """Forward lines until cancelled, then the remaining ones for a bounded time."""
        for previous in self._handover.destinations if self._handover is not None else ():
            self._add(previous.address, previous.host, previous.port, previous)
        self._handover = None
        self._reader.start()
        up()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._reader.drain()
            self._reader.close()
            await self._finish()

    def hand_over(self) -> AccessLogsHandover:
        """Return the state for the next program. Nothing may be read or sent between this and execve(2)."""
        not_started = self._handover.destinations if self._handover is not None else ()
        return AccessLogsHandover(
            str(self._path),
            self._reader.descriptor,
            self._reader.rest,
            self._lines,
            self._malformed,
            self._dropped,
            self._sent,
            not_started or tuple(destination.hand_over() for destination in self._destinations.values()),
        )

    def status(self) -> dict[str, object]:
        """Return in JSON types: counts of lines, each destination, and how often the FIFO was full (``behind``)."""
        destinations = self._destinations
        return {
            "fifo": str(self._path),
            "lines": self._lines,
            "malformed": self._malformed,
            "sent": self._sent + sum(destination.sent for destination in destinations.values()),
            "dropped": self._dropped + sum(destination.dropped for destination in destinations.values()),
            "behind": self._behind,
            "destinations": {address: destination.status() for address, destination in destinations.items()},
        }

    def _handle_lines(self, lines: list[bytes]) -> None:
        now = time.monotonic()
        for line in lines:
            if not line:
                continue
            self._lines += 1
            record = parse(line)
            if record is None:
                self._malformed_line(line, "is neither JSON nor address;payload")
                continue
            address, payload = record
            destination = self._destinations.get(address) or self._open_destination(address, line)
            if destination is not None:
                destination.used = now
                destination.put(payload)

    def _open_destination(self, address: str, line: bytes) -> Destination | None:
        place = split_address(address)
        if place is None:
            self._malformed_line(line, "names no host:port")
            return None
        if len(self._destinations) >= self._limits.destinations and not self._forget_unused():
            self._dropped += 1
            self._warn("many", f"{address} gets no lines: there are {len(self._destinations)} destinations already")
            return None
        return self._add(address, *place)

    def _add(self, address: str, host: str, port: int, handover: DestinationHandover | None = None) -> Destination:
        name = f"access log {address}"
        destination = Destination(
            address, host, port, self._limits, lambda warning: self._set_warning(name, warning), handover
        )
        self._destinations[address] = destination
        self._share()
        if self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(self._limits.idle, self._forget)
        return destination

    def _share(self) -> None:
        share = min(self._limits.size, self._limits.total // max(1, len(self._destinations)))
        for destination in self._destinations.values():
            destination.share = share

    def _forget(self) -> None:
        """Remove idle destinations; one with queued lines is not idle."""
        now = time.monotonic()
        for address, destination in list(self._destinations.items()):
            if not destination.waiting and now - destination.used >= self._limits.idle:
                self._remove(address)
        self._idle = None
        if self._destinations:
            oldest = min(destination.used for destination in self._destinations.values())
            due = max(oldest + self._limits.idle - now, self._limits.idle / 10)
            self._idle = asyncio.get_running_loop().call_later(due, self._forget)

    def _forget_unused(self) -> bool:
        unused = [(entry.used, address) for address, entry in self._destinations.items() if not entry.waiting]
        if unused:
            self._remove(min(unused)[1])
        return bool(unused)

    def _remove(self, address: str) -> None:
        destination = self._destinations.pop(address)
        self._sent += destination.sent
        self._dropped += destination.dropped
        destination.end()
        self._share()

    async def _finish(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        if self._destinations:
            flushing = [asyncio.ensure_future(destination.flush()) for destination in self._destinations.values()]
            _, late = await asyncio.wait(flushing, timeout=self._flush)
            for task in late:
                task.cancel()
        for address, destination in self._destinations.items():
            if unsent := destination.end():
                log.warning("access log %s: %d lines could not be sent any more", address, unsent)
        with contextlib.suppress(OSError):
            await asyncio.to_thread(remove_unheld, self._path)

    def _malformed_line(self, line: bytes, why: str) -> None:
        self._malformed += 1
        self._warn("malformed", f"a line of access log {why}: {line[:_SHOWN]!r}")

    def _too_long(self) -> None:
        self._malformed += 1
        self._warn("too long", "a line of access log is longer than 1 MiB")

    def _note_behind(self) -> None:
        self._behind += 1
        self._warn("behind", "access logs come faster than they can be read: until then they stay in Envoy's memory")

    def _warn(self, kind: str, text: str) -> None:
        self._throttle.warn(log, kind, time.monotonic(), text)
