"""What a previous kumadp left: over execve(2), or in its files if it was killed and its children live on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, TypeVar

import msgspec

from kumadp.decoding import Undecodable, convert, decode_msgpack
from kumadp.errors import HandoverFailed
from kumadp.host.work_dir import HandedWorkDir  # noqa: TC001 - msgspec reads the annotations
from kumadp.process.child import HandedChild  # noqa: TC001
from kumadp.process.supervisor import PreviousDeaths

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kumadp.process.child import Child

log = logging.getLogger("kumadp.daemon")

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")
SECTION = "daemon"
_KILLED_WITHIN = 5.0


class DaemonSection(msgspec.Struct, frozen=True):
    """The daemon's own section of a handover; the parts have theirs.

    ``at`` by the monotonic clock, ``started`` in seconds since 1970, ``ports`` by the field of the settings.
    """

    work: HandedWorkDir
    ready: bool
    started: float
    children: tuple[HandedChild, ...]
    at: float
    ports: dict[str, int] = {}
    past: dict[str, PreviousDeaths] = {}


class Previous:
    """The previous kumadp of this data plane; empty at a first start.

    ``work`` and ``left_at`` (by the monotonic clock) are there after a re-execution, of which there were ``count``.
    ``ports`` were chosen, by the field of the settings. ``removed_at_end``: files that a kumadp that was killed would
    have removed at its end.
    """

    def __init__(
        self,
        children: Mapping[int, Child] | None = None,
        section: DaemonSection | None = None,
        *,
        sections: Mapping[str, bytes] | None = None,
        count: int = 0,
        state: Mapping[str, object] | None = None,
    ) -> None:
        self._unclaimed = dict(children or {})
        self._sections = dict(sections or {})
        self._state = dict(state or {})
        self._killed: list[Child] = []
        self.children = tuple(self._unclaimed.values())
        self.count = count
        self.work = section.work if section is not None else None
        self.left_at = section.at if section is not None else None
        self.ready = section is not None and section.ready
        self.started = section.started if section is not None else None
        self.past: Mapping[str, PreviousDeaths] = section.past if section is not None else {}
        self.ports = section.ports if section is not None else self.recorded("ports", dict[str, int]) or {}
        self.removed_at_end = self.recorded("removed_at_end", tuple[str, ...]) or ()

    @property
    def reexecuted(self) -> bool:
        """Whether this process was a kumadp before."""
        return self.work is not None

    @property
    def pids(self) -> frozenset[int]:
        """The processes that it left."""
        return frozenset(child.pid for child in self.children)

    @property
    def fifos(self) -> frozenset[Path]:
        """The FIFOs of those."""
        return frozenset(child.fifo for child in self.children if child.fifo is not None)

    def past_of(self, child: str) -> PreviousDeaths:
        """Return the record of the deaths of the child of this name."""
        return self.past.get(child, PreviousDeaths())

    def has_section(self, part: str) -> bool:
        """Return whether the ``part`` of the previous program handed something over."""
        return part in self._sections

    def section(self, part: str, kind: type[S]) -> S | None:
        """Return the section that the ``part`` of the previous program handed over; raises HandoverFailed."""
        data = self._sections.get(part)
        return decode_section(part, data, kind) if data is not None else None

    def recorded(self, key: str, kind: type[T]) -> T | None:
        """Return what the state file has under ``key``; None if that is not there or not of this type."""
        try:
            return convert(self._state[key], kind) if self._state.get(key) is not None else None
        except Undecodable:
            return None

    def claim(self, pid: int) -> Child | None:
        """Take the child for adoption; None if it is not there (any more)."""
        return self._unclaimed.pop(pid, None)

    def claim_named(self, name: str) -> Child | None:
        """Take the first child of this name for adoption."""
        pid = next((pid for pid, child in self._unclaimed.items() if child.name == name), None)
        return self.claim(pid) if pid is not None else None

    def kill_unclaimed(self) -> None:
        """Kill the children that no part adopts: they would hold the ports."""
        for child in self._unclaimed.values():
            log.warning("cannot adopt %s (pid %d) left by the previous kumadp; killing it", child.name, child.pid)
            child.send_signal(signal.SIGKILL)
            self._killed.append(child)
        self._unclaimed.clear()

    @property
    def killed(self) -> tuple[Child, ...]:
        """The children that no part adopted."""
        return tuple(self._killed)

    async def killed_ended(self) -> None:
        """Return once those that were killed have ended: until then they hold their ports."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILLED_WITHIN):
                await asyncio.gather(*(child.wait() for child in self._killed))


def decode_section(name: str, data: bytes, kind: type[S]) -> S:
    """Decode one section of a handover; raises HandoverFailed if it does not have this type."""
    try:
        return decode_msgpack(data, kind)
    except Undecodable as error:
        raise HandoverFailed(f"the handover's section {name!r} cannot be read: {error}") from None
