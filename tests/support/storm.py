"""A storm, on a simulated clock: all sidecars lose a control plane of fixed capacity at once, and it comes back.

The waits are those of the real code: `StreamBackoff` for the stream of a running sidecar, `retry_waits` for the
bootstrap of one that starts. kuma-dp waits 3 s between requests for the bootstrap (2.8 to 2.14), without jitter. What
one attempt consists of (a connection, the bootstrap, the stream) is the same on both sides and is counted once.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kumadp.controlplane.bootstrap_http import retry_waits
from kumadp.relay.refusal import StreamBackoff, StreamRefusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The default of KUMA_CONTROL_PLANE_RETRY_BACKOFF, for kumadp the first wait.
RETRY_BACKOFF = 3.0
# An attempt that would have to wait longer than this (seconds) for its turn fails at once.
LONGEST_QUEUE = 5.0
SEED = 20261130


class Sidecar(Protocol):
    """The retry rule of one sidecar."""

    def wait(self, now: float) -> float:
        """Return the seconds until the next attempt."""


class RunningKumadp:
    """A kumadp whose stream broke."""

    def __init__(self) -> None:
        self._backoff = StreamBackoff()

    def wait(self, now: float) -> float:
        return self._backoff.wait(StreamRefusal.UNREACHABLE, now, now)


class StartingKumadp:
    """A kumadp that starts without a stored bootstrap."""

    def __init__(self) -> None:
        self._backoff = retry_waits(RETRY_BACKOFF)

    def wait(self, now: float) -> float:
        return self._backoff.wait()


class KumaDp:
    """A kuma-dp that requests its bootstrap."""

    def wait(self, now: float) -> float:
        return RETRY_BACKOFF


@dataclass(frozen=True)
class Storm:
    """What the control plane sees from the moment it is back, in seconds since then."""

    sidecars: int
    each_second: tuple[int, ...]
    """Requests in each second."""
    served: tuple[float, ...]
    """When each sidecar was served, in order."""

    @property
    def peak(self) -> int:
        """The most requests in one second."""
        return max(self.each_second)

    @property
    def all_served(self) -> float:
        """Seconds until the last one was served."""
        return self.served[-1]


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    state = random.getstate()
    random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(state)


def simulate(make: Callable[[], Sidecar], sidecars: int, *, outage: float, capacity: float) -> Storm:
    """Have all lose the control plane at 0, which is back after ``outage`` s and serves ``capacity`` sidecars/s."""
    with _seeded():
        fleet = [make() for _ in range(sidecars)]
        attempts = [(sidecar.wait(0.0), number) for number, sidecar in enumerate(fleet)]
        heapq.heapify(attempts)
        each_second: collections.Counter[int] = collections.Counter()
        served: list[float] = []
        free_at = outage
        while attempts:
            now, number = attempts[0]
            if now >= outage:
                each_second[int(now - outage)] += 1
                free_at = max(free_at, now)
                if free_at - now <= LONGEST_QUEUE:
                    free_at += 1 / capacity
                    served.append(free_at - outage)
                    heapq.heappop(attempts)
                    continue
            heapq.heapreplace(attempts, (now + fleet[number].wait(now), number))
    return Storm(sidecars, tuple(each_second[second] for second in range(max(each_second) + 1)), tuple(served))
