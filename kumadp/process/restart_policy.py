"""Decides whether and when a child is restarted. Pure."""

from __future__ import annotations

import enum

from msgspec import Struct

NO_BUDGET = "it is not restarted (budget 0)"


class ChildState(enum.Enum):
    """State of a child. The numbers are values of metrics and never change."""

    STOPPED = 0
    STARTING = 1
    RUNNING = 2
    STOPPING = 3
    EXITED = 4
    BACKOFF = 5
    FATAL = 6
    RUNNING_BLIND = 7


class RestartPolicy(Struct, frozen=True):
    """``budget`` restarts within ``window`` seconds; all times in seconds.

    A child that did its job for ``settled`` is restarted at once. One that ends sooner waits: not the first time, then
    ``base``, doubling to ``cap``. After a run of ``stable`` the whole budget is available again. Budget 0 is kuma-dp's
    behaviour: no restart.
    """

    budget: int
    window: float = 300.0
    base: float = 0.05
    cap: float = 8.0
    settled: float = 10.0
    stable: float = 60.0


class Restarts(Struct, frozen=True):
    """Times of the restarts so far, and how many of the last ones followed a child that ended too soon."""

    times: tuple[float, ...] = ()
    early: int = 0


class Run(Struct, frozen=True):
    """How long a child ran, and for how much of that time it did its job (seconds)."""

    ran: float
    served: float = 0.0


class RestartAfter(Struct, frozen=True):
    """Restart it after ``delay`` seconds; ``restarts`` is the argument of the next `decide`."""

    delay: float
    restarts: Restarts


class GiveUp(Struct, frozen=True):
    """Do not restart it."""

    reason: str


def decide(restarts: Restarts, now: float, run: Run, policy: RestartPolicy) -> RestartAfter | GiveUp:
    """Return what to do after an exit; ``now`` is the time in seconds of the clock of ``restarts``."""
    recent = () if run.ran >= policy.stable else tuple(at for at in restarts.times if now - at < policy.window)
    if len(recent) >= policy.budget:
        if policy.budget == 0:
            return GiveUp(NO_BUDGET)
        return GiveUp(f"restart budget spent ({policy.budget} in {policy.window:.0f} s)")
    if run.served >= policy.settled:
        return RestartAfter(0.0, Restarts((*recent, now)))
    early = min(restarts.early, len(recent))
    delay = min(policy.cap, policy.base * 2**early) if early else 0.0
    return RestartAfter(delay, Restarts((*recent, now), early + 1))
