"""Walking the steps of a drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Protocol

from kumadp.daemon.drain import Announce, DrainInbound, EndApplication, FailHealthChecks, Wait

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from kumadp.daemon.drain import Step
    from kumadp.envoy.workload_connections import Direction

log = logging.getLogger("kumadp.daemon")


class Drained(Protocol):
    """What is drained; the run loop's `Daemon` is one."""

    async def fail_health_checks(self) -> None:
        """Ask Envoy to fail its health checks."""

    async def drain_inbound(self) -> None:
        """Ask Envoy to drain its inbound listeners and to stay."""

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
            log.info("for %.1f s everything is served as before, readiness says TERMINATING", step.seconds)
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
    """Make a call that may fail or take longer than ``deadline`` seconds; then that is told, and no more."""
    try:
        async with asyncio.timeout(deadline):
            await call
    except TimeoutError:
        log.warning("%s: no answer within %.1f s; going on", what, deadline)
    except Exception as error:
        log.warning("%s failed: %s; going on", what, error)
