"""Waits between retries: they grow exponentially up to a cap, with jitter. Pure."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Backoff:
    """Waits in seconds, from ``first`` on, each ``growth`` times the previous one and at most ``cap``.

    ``keep`` is the part of each wait that jitter leaves: 0 is full jitter (anything from 0 to the wait), 1 is none.
    Many data planes retry against the same server: jitter keeps them out of step. ``uniform`` draws from a range.
    """

    def __init__(
        self,
        first: float,
        cap: float,
        *,
        growth: float = 2.0,
        keep: float = 0.5,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first = min(first, cap)
        self._cap = cap
        self._growth = growth
        self._keep = keep
        self._uniform = uniform
        self._next = self._first

    def reset(self) -> None:
        """Begin with the first wait again, after a success."""
        self._next = self._first

    def grow(self) -> float:
        """Return the next wait without jitter; the one after it is longer."""
        wait = self._next
        self._next = min(wait * self._growth, self._cap)
        return wait

    def wait(self) -> float:
        """Return the next wait, with jitter; the one after it is longer."""
        return self.grow() * self._uniform(self._keep, 1.0)
