"""The end of an old epoch: it drains, and ends when the new epoch orders it to."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.envoy.parent_fallback import answer_as_parent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kumadp.envoy.base_id import BaseIdFiles
    from kumadp.process.child import Child

log = logging.getLogger("kumadp.envoy")

# An old epoch that ends this much before it is due, or this long after, did not end as ordered (seconds).
SLACK = 0.5
OVERSTAYED = 5.0
# How long the new epoch tries to reach its parent before it aborts (seconds; Envoy 1.40, measured).
ABORTS_AFTER = 10.0
# How long a new epoch may be too busy to send the order to end (seconds): one that hangs is killed before.
ORDERS_WITHIN = 120.0


class Due(Struct, frozen=True):
    """When the new epoch orders the old one to end, by the monotonic clock: not before ``earliest``.

    It counts from the moment at which it was LIVE, which kumadp sees late on a busy host, at ``latest``.
    """

    earliest: float
    latest: float


async def retire(
    child: Child, due: Due, grace: float, on_ended: Callable[[bool], None], parent_socket: Callable[[], Path | None]
) -> None:
    """Wait until ``child`` has ended, which is ``due``, and act if it does not.

    A process that stays is stopped, with ``grace`` seconds until SIGKILL. If it ends early or is stopped, the fallback
    answers at ``parent_socket`` (None: no epoch sends to it any more): a new epoch that is busy, or is stopped itself,
    sends the order late. ``on_ended`` gets whether the end was expected.
    """
    child.planned_from, stopped = due.earliest - SLACK, False
    try:
        async with asyncio.timeout(max(0.0, due.latest - time.monotonic()) + OVERSTAYED):
            await child.wait()
    except TimeoutError:
        log.warning("the old Envoy did not end when it was due; stopping it")
        await child.stop(grace)
        stopped = True
    remaining = due.earliest - time.monotonic()
    on_ended(remaining <= SLACK)
    path = parent_socket() if stopped or remaining > SLACK else None
    if path is None:
        return
    when = "because it did not end by itself" if stopped else f"{remaining:.1f} s before its time"
    log.warning("the old Envoy ended %s; using the fallback for its socket", when)
    await answer_for_dead_parent(path, due.latest, ORDERS_WITHIN if stopped else ABORTS_AFTER + OVERSTAYED)


async def answer_for_dead_parent(path: Path, due: float, longer: float = ABORTS_AFTER + OVERSTAYED) -> None:
    """Answer for a dead epoch until the order to end comes, at ``due`` (monotonic clock) or up to ``longer`` later.

    A new epoch that gets no answer at first, while no kumadp runs, keeps trying. ``longer`` is in seconds.
    """
    try:
        await answer_as_parent(path, max(0.0, due - time.monotonic()) + longer)
    except OSError as error:
        log.error("the fallback for the old Envoy failed: %s", error)


def begin_fallback(base: BaseIdFiles, epoch: int, due: float) -> asyncio.Task[None] | None:
    """Begin to answer for an old ``epoch`` that has died, which is ``due`` (monotonic clock); None without a base id.

    It is begun as soon as that is known: an adoption may have to wait for the control plane, and the order to the dead
    one may come at any moment, or have come when no kumadp ran.
    """
    path = base.parent_socket(epoch)
    if path is None:
        return None
    log.warning("the old Envoy left by the previous kumadp is dead; using the fallback for its socket")
    return asyncio.get_running_loop().create_task(answer_for_dead_parent(path, due), name="fallback")
