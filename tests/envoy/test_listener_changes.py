"""What is to be proved again where no relay sees what Envoy is sent."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

import pytest

from kumadp.envoy.admin import AdminUnreachable
from kumadp.envoy.listener_changes import ListenerChanges

if TYPE_CHECKING:
    from collections.abc import Collection

    from kumadp.envoy.admin import AdminClient

ADDED, MODIFIED = "listener_manager.listener_added", "listener_manager.listener_modified"
CLUSTERS, ENDPOINTS = "cluster_manager.cluster_added", "cluster_manager.cluster_updated"
START = {ADDED: 2, MODIFIED: 0, CLUSTERS: 3, ENDPOINTS: 3}


class Admin:
    """Answers one after the other, the last one again and again."""

    def __init__(self, *answers: dict[str, int] | Exception) -> None:
        self._answers = list(answers)
        self.done = asyncio.Event()

    async def stats(self, _pattern: str) -> dict[str, int]:
        answer = self._answers.pop(0)
        if not self._answers:
            self.done.set()
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer


async def doubts(*answers: dict[str, int] | Exception) -> list[Collection[str] | None]:
    admin = Admin(*answers, {})
    found: list[Collection[str] | None] = []
    task = asyncio.ensure_future(ListenerChanges(cast("AdminClient", admin), found.append, 0.0).run(lambda: None))
    await asyncio.wait_for(admin.done.wait(), 10)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return found


@pytest.mark.parametrize("counter", [ADDED, MODIFIED])
async def test_another_listener_is_a_doubt_about_all(counter: str) -> None:
    """What changed between the proof of the start and the first look is found in the configuration."""
    assert await doubts(START, START, START | {counter: 7}, START | {counter: 7}) == [(), None]


@pytest.mark.parametrize("counter", [CLUSTERS, ENDPOINTS])
async def test_other_clusters_and_endpoints_ask_no_application(counter: str) -> None:
    assert await doubts(START, START | {counter: 9}) == [(), ()]


async def test_a_restarted_envoy_is_a_doubt_and_one_that_does_not_answer_is_none() -> None:
    silent = AdminUnreachable("refused")
    assert await doubts(START, silent, ValueError("no JSON"), START) == [()]
    assert await doubts(START, silent, START | {ADDED: 1}) == [(), None]
