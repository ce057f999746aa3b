"""Waits between retries: they grow exponentially up to a cap, with jitter. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Backoff:
    """Waits in seconds, from ``first`` on, each ``growth`` times the previous one and at most ``cap``.

    ``keep`` is the part of each wait that jitter leaves: 0 is full jitter (anything from 0 to the wait), 1 is none.
    Many data planes retry against the same server: jitter keeps them out of step. ``keep_at_cap`` is the same for waits
    that have reached the cap, where more of them on average means fewer requests; None: ``keep``. ``uniform`` draws
    from a range; None: ``random.uniform``.
    """

    def __init__(
        self,
        first: float,
        cap: float,
        *,
        growth: float = 2.0,
        keep: float = 0.5,
        keep_at_cap: float | None = None,
        uniform: Callable[[float, float], float] | None = None,
    ) -> None:
        self._first = min(first, cap)
        self._cap = cap
        self._growth = growth
        self._keep = keep
        self._keep_at_cap = keep if keep_at_cap is None else keep_at_cap
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
        wait = self.grow()
        if self._uniform is None:
            import random

            self._uniform = random.uniform
        return wait * self._uniform(self._keep_at_cap if wait >= self._cap else self._keep, 1.0)
