"""The end of an old epoch: it drains, and ends when the new epoch orders it to."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from kumadp.envoy.parent_fallback import answer_as_parent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kumadp.process.child import Child

log = logging.getLogger("kumadp.envoy")

# An old epoch that ends this much before it is due, or this long after, did not end as ordered (seconds).
SLACK = 0.5
OVERSTAYED = 5.0
# How long the new epoch tries to reach its parent before it aborts (seconds; Envoy 1.40, measured).
ABORTS_AFTER = 10.0


async def retire(
    child: Child, due: float, grace: float, on_ended: Callable[[bool], None], parent_socket: Callable[[], Path | None]
) -> None:
    """Wait until ``child`` has ended, which is due at ``due`` (monotonic clock), and act if it does not.

    A process that stays is stopped, with ``grace`` seconds until SIGKILL. If it ends early, the fallback answers at
    ``parent_socket`` (None: no epoch sends to it any more). ``on_ended`` gets whether the end was expected.
    """
    child.planned_from = due - SLACK
    try:
        async with asyncio.timeout(max(0.0, due - time.monotonic()) + OVERSTAYED):
            await child.wait()
    except TimeoutError:
        log.warning("the old Envoy did not end when it was due; stopping it")
        await child.stop(grace)
    remaining = due - time.monotonic()
    on_ended(remaining <= SLACK)
    path = parent_socket() if remaining > SLACK else None
    if path is None:
        return
    log.warning("the old Envoy ended %.1f s before its time; using the fallback for its socket", remaining)
    await answer_for_dead_parent(path, due)


async def answer_for_dead_parent(path: Path, due: float) -> None:
    """Answer for a dead epoch until the order to end comes, at ``due`` (monotonic clock) or a little later.

    A new epoch that gets no answer at first, while no kumadp runs, keeps trying.
    """
    try:
        await answer_as_parent(path, max(0.0, due - time.monotonic()) + ABORTS_AFTER + OVERSTAYED)
    except OSError as error:
        log.error("the fallback for the old Envoy failed: %s", error)
