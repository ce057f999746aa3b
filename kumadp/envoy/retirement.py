"""The last part of an old epoch's life: it drains, and is told to end by the one that took its place."""

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

# An old epoch that ends this much before its time, or this long after it, did not end as it was told (seconds).
SLACK = 0.5
OVERSTAYED = 5.0
# How long the new one tries to tell it before it aborts (seconds; Envoy 1.40, measured).
ABORTS_AFTER = 10.0


async def retire(
    child: Child, due: float, grace: float, ended: Callable[[bool], None], parent_socket: Callable[[], Path | None]
) -> None:
    """Wait until ``child`` has ended, as it is told to at ``due`` (monotonic clock), and help where it goes wrong.

    One that stays is stopped. For one that ends early somebody stands in at ``parent_socket`` (None: nobody speaks to
    it any more). ``ended`` hears whether the end was expected.
    """
    child.planned_from = due - SLACK
    try:
        async with asyncio.timeout(max(0.0, due - time.monotonic()) + OVERSTAYED):
            await child.wait()
    except TimeoutError:
        log.warning("the old Envoy did not end when it was told to")
        await child.stop(grace)
    left = due - time.monotonic()
    ended(left <= SLACK)
    path = parent_socket() if left > SLACK else None
    if path is None:
        return
    log.warning("the old Envoy ended %.1f s before its time", left)
    await answer_for_dead_parent(path, due)


async def answer_for_dead_parent(path: Path, due: float) -> None:
    """Stand in for an old epoch that is dead, until it is told to end: at ``due`` (monotonic clock), or a little later.

    One that finds nobody at first, while no kumadp runs, goes on trying.
    """
    try:
        await answer_as_parent(path, max(0.0, due - time.monotonic()) + ABORTS_AFTER + OVERSTAYED)
    except OSError as error:
        log.error("nobody stands in for the old Envoy: %s", error)
