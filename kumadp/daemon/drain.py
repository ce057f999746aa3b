"""The drain: which steps a stop takes, decided by a pure function, and taking them one after the other.

Kuma 2.8 and 2.14: readiness goes to TERMINATING, ``POST /healthcheck/fail``, the drain time, then everything stops;
after SIGUSR2 a SIGTERM stops at once. Unlike kuma-dp the wait happens even when the admin call fails, and each call
has a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

from kumadp.host.environment import on_kubernetes

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from kumadp.envoy.workload_connections import Direction
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.daemon")

ADMIN_DEADLINE = 5.0
# How long peers may go on sending after the control plane was notified (seconds); then an idle data plane may stop.
MIN_DRAIN_TIME = 5.0


class FailHealthChecks(Struct, frozen=True):
    """Have Envoy fail its health checks, so that peers stop sending; ``deadline`` in seconds."""

    deadline: float = ADMIN_DEADLINE


class DrainInbound(Struct, frozen=True):
    """Have Envoy drain its inbound listeners alone, as the application still calls out; ``deadline`` in seconds."""

    deadline: float = ADMIN_DEADLINE


class EndApplication(Struct, frozen=True):
    """Have the application end that we run, and wait for it; it has its own deadline."""


class Wait(Struct, frozen=True):
    """Let requests in flight end; ``seconds`` is cut short by a second signal or by Envoy's own end.

    After ``at_least`` seconds it ends too when the workload has no connection any more, of this ``direction``.
    """

    seconds: float
    at_least: float | None = None
    direction: Direction = "both"


class Announce(Struct, frozen=True):
    """For ``seconds`` only readiness reports the end: its clients go elsewhere, all requests are still served."""

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


def min_drain_time(settings: Settings, environ: Mapping[str, str]) -> float | None:
    """Return the seconds that a drain takes at least; None: all of the drain time.

    That is the setting, else all of it on Kubernetes (as kuma-dp), else `MIN_DRAIN_TIME`.
    """
    if settings.min_drain_time is not None:
        return settings.min_drain_time
    return None if on_kubernetes(environ) else MIN_DRAIN_TIME


class Drained(Protocol):
    """What is drained; the run loop's `Daemon` is one."""

    async def fail_health_checks(self) -> None:
        """Have Envoy fail its health checks."""

    async def drain_inbound(self) -> None:
        """Have Envoy drain its inbound listeners and to stay."""

    async def end_application(self) -> None:
        """Have the application end that we run, and wait for it."""

    async def envoy_gone(self) -> None:
        """Return once Envoy has ended."""

    async def idle(self, direction: Direction) -> None:
        """Return once the workload has no connection of that direction through Envoy."""


async def walk(daemon: Drained, steps: tuple[Step, ...]) -> None:
    """Do one step after the other; to be cancelled when somebody cuts the drain short."""
    for step in steps:
        if isinstance(step, FailHealthChecks):
            await bounded(daemon.fail_health_checks(), "failing Envoy's health checks", step.deadline)
        elif isinstance(step, DrainInbound):
            await bounded(daemon.drain_inbound(), "drain of inbound listeners", step.deadline)
        elif isinstance(step, EndApplication):
            await daemon.end_application()
        elif isinstance(step, Announce):
            log.info("for %.1f s all traffic is still served, while readiness reports TERMINATING", step.seconds)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step.seconds):
                    await daemon.envoy_gone()
        elif isinstance(step, Wait):
            await _wait(daemon, step)


async def _wait(daemon: Drained, step: Wait) -> None:
    log.info("draining for at most %.1f s", step.seconds)
    loop = asyncio.get_running_loop()
    ends = [loop.create_task(daemon.envoy_gone(), name="Envoy is gone")]
    if step.at_least is not None:
        ends.append(loop.create_task(_idle(daemon, step.at_least, step.direction), name="nobody is connected any more"))
    try:
        done, _ = await asyncio.wait(ends, timeout=step.seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()
    for end in done:
        log.info("%s: the drain ends", end.get_name())


async def _idle(daemon: Drained, at_least: float, direction: Direction) -> None:
    await asyncio.sleep(at_least)
    await daemon.idle(direction)


async def bounded(call: Coroutine[object, object, None], what: str, deadline: float = 5.0) -> None:
    """Make a call that may fail or take longer than ``deadline`` seconds; either is only logged."""
    try:
        async with asyncio.timeout(deadline):
            await call
    except TimeoutError:
        log.warning("%s: no answer within %.1f s; going on", what, deadline)
    except Exception as error:
        log.warning("%s failed: %s; going on", what, error)
