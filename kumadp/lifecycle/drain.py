"""The drain as data: which steps a stop takes, decided by a pure function.

Kuma 2.8 and 2.14: readiness goes to TERMINATING, ``POST /healthcheck/fail``, the drain time, then everything stops;
after SIGUSR2 a SIGTERM stops at once. Unlike kuma-dp the wait happens even when the admin call fails, and each call
has a deadline.
"""

from __future__ import annotations

from dataclasses import dataclass

ADMIN_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class FailHealthChecks:
    """Ask Envoy to fail its health checks, so that peers stop sending; ``deadline`` in seconds."""

    deadline: float = ADMIN_DEADLINE


@dataclass(frozen=True, slots=True)
class Wait:
    """Let requests in flight end; ``seconds`` is cut short by a second signal or by Envoy's own end.

    After ``at_least`` seconds it ends too when the workload has no connection any more.
    """

    seconds: float
    at_least: float | None = None


@dataclass(frozen=True, slots=True)
class Announce:
    """For ``seconds`` only readiness says that this is the end: who asks it goes elsewhere, all others are served."""

    seconds: float


Step = FailHealthChecks | Wait | Announce


def plan_drain(
    *,
    envoy_runs: bool,
    inbound_drained: bool,
    drain_time: float,
    min_drain_time: float | None = None,
    pre_drain_delay: float = 0.0,
) -> tuple[Step, ...]:
    """The steps between the first SIGTERM and the stop; times in seconds.

    ``inbound_drained``: SIGUSR2 came before (native sidecars on Kubernetes): inbound has drained already, so the stop
    is immediate, as with kuma-dp. Without a running Envoy there is nothing to drain. ``min_drain_time`` None: the whole
    drain time is waited, as kuma-dp does.
    """
    if not envoy_runs or inbound_drained:
        return ()
    first = (Announce(pre_drain_delay),) if pre_drain_delay else ()
    at_least = min(min_drain_time, drain_time) if min_drain_time is not None else None
    return (*first, FailHealthChecks(), Wait(drain_time, at_least))
