"""Waiting for an Envoy that comes up, by the order of events: pauses of an hour show that none is waited for."""

from __future__ import annotations

import asyncio

from kumadp.envoy.serving_watch import ServingWatch

HOUR = 3600.0


class Envoy:
    """Serves after the events that it needs, and counts queries."""

    def __init__(self) -> None:
        self.serves = False
        self.queries: asyncio.Queue[bool] = asyncio.Queue()

    async def query(self) -> bool:
        self.queries.put_nowait(self.serves)
        return self.serves


async def test_it_is_queried_right_after_an_event() -> None:
    watch, envoy = ServingWatch(HOUR, HOUR), Envoy()
    async with asyncio.timeout(30):
        waiting = asyncio.create_task(watch.until(envoy.query))
        assert not await envoy.queries.get()
        watch.event()
        assert not await envoy.queries.get()
        envoy.serves = True
        watch.event()
        await waiting


async def test_an_event_during_a_query_is_not_lost() -> None:
    watch, envoy = ServingWatch(HOUR, HOUR), Envoy()

    async def query() -> bool:
        served = await envoy.query()
        if not served:
            # What it has accepted since the query was sent.
            envoy.serves = True
            watch.event()
        return served

    async with asyncio.timeout(30):
        await watch.until(query)
    assert envoy.queries.qsize() == 2


async def test_without_events_it_is_queried_again_and_again() -> None:
    watch, envoy = ServingWatch(0.0, 0.0), Envoy()
    async with asyncio.timeout(30):
        waiting = asyncio.create_task(watch.until(envoy.query))
        for _ in range(3):
            assert not await envoy.queries.get()
        envoy.serves = True
        await waiting
