"""Decides whether and when a child is restarted. Pure."""

from __future__ import annotations

import enum

from msgspec import Struct


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
    """``budget`` restarts within ``window`` seconds, after waits of ``base`` doubling to ``cap`` seconds.

    After a run of ``stable`` seconds the whole budget is available again. Budget 0 is kuma-dp's behaviour: no restart.
    """

    budget: int
    window: float = 300.0
    base: float = 0.05
    cap: float = 8.0
    stable: float = 60.0


class RestartAfter(Struct, frozen=True):
    """Restart it after ``delay`` seconds; ``history`` is the argument of the next `decide`."""

    delay: float
    history: tuple[float, ...]


class GiveUp(Struct, frozen=True):
    """Do not restart it."""

    reason: str


def decide(history: tuple[float, ...], now: float, ran: float, policy: RestartPolicy) -> RestartAfter | GiveUp:
    """Return what to do after an exit.

    ``history`` are the times of earlier restarts, ``now`` is the time, ``ran`` how long the child ran, all in seconds
    of one clock.
    """
    recent = () if ran >= policy.stable else tuple(at for at in history if now - at < policy.window)
    if len(recent) >= policy.budget:
        if policy.budget == 0:
            return GiveUp("it is not restarted (budget 0)")
        return GiveUp(f"restart budget spent ({policy.budget} in {policy.window:.0f} s)")
    delay = min(policy.cap, policy.base * 2 ** len(recent)) if recent else 0.0
    return RestartAfter(delay, (*recent, now))
