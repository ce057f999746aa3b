"""Generations of Envoy: numbers that only grow, as epochs begin at 0 again after a cold start. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kumadp.envoy.options import EpochCallbacks


class Generations:
    """Numbers each Envoy, and reports to ``callbacks`` when it starts, is LIVE and ends."""

    def __init__(self, callbacks: EpochCallbacks) -> None:
        self._callbacks = callbacks
        self._by_pid: dict[int, int] = {}
        self.newest = -1

    def begin_at(self, number: int) -> None:
        """Give the next Envoy this number: it is adopted, and keeps the one that it has."""
        self.newest = number - 1

    def started(self, pid: int) -> None:
        """Number an Envoy that has been started, or adopted."""
        self.newest += 1
        self._by_pid[pid] = self.newest
        self._callbacks.on_started(self.newest, pid)

    def live(self) -> None:
        """Note that the newest one is LIVE."""
        self._callbacks.on_live(self.newest)

    def ended(self, pid: int, *, expected: bool) -> None:
        """Note that an Envoy has ended."""
        self._callbacks.on_ended(self._by_pid.pop(pid, self.newest), pid, expected)
