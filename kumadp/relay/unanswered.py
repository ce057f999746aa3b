"""Subscriptions that the control plane has not answered on the present stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# How long the control plane may leave a first subscription unanswered, in seconds, before a warning is logged.
SILENCE = 15.0


class Unanswered:
    """Types by the time since when they are unanswered, by ``clock``.

    ``on_silence`` is called with the types, each ``SILENCE`` seconds while there are some.
    """

    def __init__(self, clock: Callable[[], float], on_silence: Callable[[tuple[str, ...]], None]) -> None:
        self._clock = clock
        self._on_silence = on_silence
        self._since: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, type_url: str) -> None:
        """An answer is expected from now on."""
        self._since.setdefault(type_url, self._clock())
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SILENCE, self._elapsed)

    def answered(self, type_url: str) -> None:
        """It has come."""
        self._since.pop(type_url, None)

    def clear(self) -> None:
        """The stream has ended, or another one has begun."""
        self._since.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def silence(self) -> float:
        """Seconds for which the oldest has been unanswered; 0 if there is none."""
        return self._clock() - min(self._since.values()) if self._since else 0.0

    def _elapsed(self) -> None:
        self._timer = None
        if self._since:
            self._on_silence(tuple(self._since))
            self._timer = asyncio.get_running_loop().call_later(SILENCE, self._elapsed)
