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
    """Let requests in flight end; ``seconds`` is cut short by a second signal or by Envoy's own end."""

    seconds: float


Step = FailHealthChecks | Wait


def plan_drain(*, envoy_runs: bool, inbound_drained: bool, drain_time: float) -> tuple[Step, ...]:
    """The steps between the first SIGTERM and the stop.

    ``inbound_drained``: SIGUSR2 came before (native sidecars on Kubernetes): inbound has drained already, so the stop
    is immediate, as with kuma-dp. Without a running Envoy there is nothing to drain. ``drain_time`` in seconds.
    """
    if not envoy_runs or inbound_drained:
        return ()
    return (FailHealthChecks(), Wait(drain_time))
