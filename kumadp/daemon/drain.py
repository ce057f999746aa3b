"""The drain as data: which steps a stop takes, decided by a pure function.

Kuma 2.8 and 2.14: readiness goes to TERMINATING, ``POST /healthcheck/fail``, the drain time, then everything stops;
after SIGUSR2 a SIGTERM stops at once. Unlike kuma-dp the wait happens even when the admin call fails, and each call
has a deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kumadp.envoy.workload_connections import Direction

ADMIN_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class FailHealthChecks:
    """Ask Envoy to fail its health checks, so that peers stop sending; ``deadline`` in seconds."""

    deadline: float = ADMIN_DEADLINE


@dataclass(frozen=True, slots=True)
class DrainInbound:
    """Ask Envoy to drain its inbound listeners alone, as the application still calls out; ``deadline`` in seconds."""

    deadline: float = ADMIN_DEADLINE


@dataclass(frozen=True, slots=True)
class EndApplication:
    """Have the application end that we run, and wait for it; it has a deadline of its own."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Let requests in flight end; ``seconds`` is cut short by a second signal or by Envoy's own end.

    After ``at_least`` seconds it ends too when the workload has no connection any more, of this ``direction``.
    """

    seconds: float
    at_least: float | None = None
    direction: Direction = "both"


@dataclass(frozen=True, slots=True)
class Announce:
    """For ``seconds`` only readiness says that this is the end: who asks it goes elsewhere, all others are served."""

    seconds: float


Step = FailHealthChecks | DrainInbound | Wait | Announce | EndApplication


def plan_drain(
    *,
    envoy_runs: bool,
    inbound_drained: bool,
    drain_time: float,
    min_drain_time: float | None = None,
    pre_drain_delay: float = 0.0,
    application: Literal["none", "runs", "ended"] = "none",
) -> tuple[Step, ...]:
    """The steps between the first SIGTERM and the stop; times in seconds.

    ``inbound_drained``: SIGUSR2 came before (native sidecars on Kubernetes): inbound has drained already, so the stop
    is immediate, as with kuma-dp. Without a running Envoy there is nothing to drain. ``min_drain_time`` None: the whole
    drain time is waited, as kuma-dp does.

    With an ``application`` that we run, inbound alone drains; then it is to end, and may call out until it has. Of one
    that has ended only calls of what it left running can still be under way.
    """
    if application == "ended":
        return (FailHealthChecks(), Wait(drain_time, 0.0, "outbound")) if envoy_runs else ()
    end = (EndApplication(),) if application == "runs" else ()
    if not envoy_runs or inbound_drained:
        return end
    first = (Announce(pre_drain_delay),) if pre_drain_delay else ()
    at_least = min(min_drain_time, drain_time) if min_drain_time is not None else None
    if application == "runs":
        return (*first, DrainInbound(), Wait(drain_time, at_least, "inbound"), *end)
    return (*first, FailHealthChecks(), Wait(drain_time, at_least))
