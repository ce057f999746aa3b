"""When a child is started again: a pure decision."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class ChildState(enum.Enum):
    """Where a child is in its life. The numbers are shown in metrics and never change."""

    STOPPED = 0
    STARTING = 1
    RUNNING = 2
    STOPPING = 3
    EXITED = 4
    BACKOFF = 5
    FATAL = 6
    RUNNING_BLIND = 7


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """``budget`` restarts within ``window`` seconds, after waits of ``base`` doubling to ``cap`` seconds.

    A run of ``stable`` seconds earns everything back. Budget 0 is kuma-dp's behaviour: no restart ever.
    """

    budget: int
    window: float = 300.0
    base: float = 0.05
    cap: float = 8.0
    stable: float = 60.0


@dataclass(frozen=True, slots=True)
class RestartAfter:
    """Start it again after ``delay`` seconds; ``history`` is what the next decision is to be asked with."""

    delay: float
    history: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start it again."""

    reason: str


def decide(history: tuple[float, ...], now: float, ran: float, policy: RestartPolicy) -> RestartAfter | GiveUp:
    """What to do after an exit.

    ``history`` holds the times of earlier restarts, ``now`` the present time, ``ran`` how long the child ran, all in
    seconds of one clock.
    """
    recent = () if ran >= policy.stable else tuple(at for at in history if now - at < policy.window)
    if len(recent) >= policy.budget:
        if policy.budget == 0:
            return GiveUp("it is not restarted (budget 0)")
        return GiveUp(f"restart budget spent ({policy.budget} in {policy.window:.0f} s)")
    delay = min(policy.cap, policy.base * 2 ** len(recent)) if recent else 0.0
    return RestartAfter(delay, (*recent, now))
