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


async def requested_proofs(*answers: dict[str, int] | Exception) -> list[Collection[str] | None]:
    admin = Admin(*answers, {})
    requests: list[Collection[str] | None] = []
    task = asyncio.ensure_future(ListenerChanges(cast("AdminClient", admin), requests.append, 0.0).run(lambda: None))
    await asyncio.wait_for(admin.done.wait(), 10)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return requests


@pytest.mark.parametrize("counter", [ADDED, MODIFIED])
async def test_a_changed_listener_requests_a_proof_of_all(counter: str) -> None:
    """What changed between the proof of the start and the first look is requests in the configuration."""
    assert await requested_proofs(START, START, START | {counter: 7}, START | {counter: 7}) == [(), None]


@pytest.mark.parametrize("counter", [CLUSTERS, ENDPOINTS])
async def test_changed_clusters_and_endpoints_probe_no_application(counter: str) -> None:
    assert await requested_proofs(START, START | {counter: 9}) == [(), ()]


async def test_a_restarted_envoy_requests_a_proof_and_a_silent_one_does_not() -> None:
    silent = AdminUnreachable("refused")
    assert await requested_proofs(START, silent, ValueError("no JSON"), START) == [()]
    assert await requested_proofs(START, silent, START | {ADDED: 1}) == [(), None]
