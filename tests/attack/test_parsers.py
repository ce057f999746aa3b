"""Text from outside that would cost exponential or quadratic time, and bodies of metrics that would fill memory."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from kumadp.exposition.reader import MAX_FAMILIES
from kumadp.metrics import scrape
from kumadp.metrics.formats import Format
from kumadp.metrics.labels import Labels
from kumadp.metrics.scrape import BufferedSource, ExpositionWriter, write_buffered
from kumadp.metrics.sources import ScrapeTarget
from tests.metrics.test_server import APP, ENVOY, at
from tests.support.expositions import Exposition, collecting, exposed
from tests.support.hostile_texts import CASES, EXPOSITIONS, Hostile, processor_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Each takes far less; those that were not linear took minutes, or did not end.
LIMIT = 20.0
LIMIT_OF_MEMORY = 64 << 20
# They are read in linear time, and still take seconds.
SLOW = {"bootstrap of listeners", "bootstrap of headers", "metrics: two families in turn"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.attack if case.name in SLOW else (), id=case.name) for case in CASES],
)
def test_the_largest_text_is_read_in_linear_time(case: Hostile) -> None:
    with processor_time(LIMIT):
        case.run(min(case.size, 1 << 20))


@pytest.mark.attack
@pytest.mark.parametrize("case", [case for case in CASES if case.size > 1 << 20], ids=lambda case: case.name)
def test_the_largest_of_all_is_read_too(case: Hostile) -> None:
    with processor_time(LIMIT):
        case.run(case.size)


class Turns:
    """Counts how often other tasks had their turn."""

    def __init__(self) -> None:
        self.count = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    def end(self) -> int:
        self._task.cancel()
        return self.count


async def scraped(monkeypatch: pytest.MonkeyPatch, body: bytes) -> tuple[BufferedSource, int, int]:
    """The source, how many bytes were written, and how many turns others had, for a body that comes at once."""

    class Answer:
        format = Format.TEXT

        async def parts(self) -> AsyncIterator[bytes]:
            for start in range(0, len(body), 1 << 18):
                yield body[start : start + (1 << 18)]

    @contextlib.asynccontextmanager
    async def open_source(_target: ScrapeTarget, _headers: object) -> AsyncIterator[Answer]:
        yield Answer()

    monkeypatch.setattr(scrape, "open_source", open_source)
    written = 0

    async def write(data: bytes) -> None:
        nonlocal written
        written += len(data)

    other = BufferedSource(ScrapeTarget("app", "", limit=16 << 20), Labels({"mesh": "default"}), {}, rewritten=True)
    turns = Turns()
    await other.read(asyncio.get_running_loop().time() + 60, asyncio.Event())
    await write_buffered([other], ExpositionWriter(write, compress=False), Format.TEXT, "underscores")
    return other, written, turns.end()


@pytest.mark.attack
@pytest.mark.parametrize("name", EXPOSITIONS)
async def test_a_body_of_metrics_keeps_memory_in_bounds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    body = EXPOSITIONS[name](16 << 20).encode()
    tracemalloc.start()
    try:
        other, _, _ = await scraped(monkeypatch, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LIMIT_OF_MEMORY, (peak, other.result)


@pytest.mark.parametrize("name", EXPOSITIONS)
async def test_others_have_their_turn_while_a_body_of_metrics_is_read(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    body = EXPOSITIONS[name](1 << 20).encode()
    other, _, turns = await scraped(monkeypatch, body)
    # Once for each 16 KB, unless it was refused before its end.
    assert turns >= len(body) >> 14 or other.result.failure, (turns, other.result)


async def test_a_source_of_too_many_families_costs_its_own_part() -> None:
    hostile = Exposition("".join(f"m{number} 1\n" for number in range(MAX_FAMILIES + 1)))
    app, envoy = Exposition(APP), Exposition(ENVOY)
    async with exposed(hostile, app, envoy), collecting(at(hostile, app, envoy=envoy)) as collector:
        got = await collector.scrape()
        assert collector.concerns["app0"] == f"it has more than {MAX_FAMILIES} families"
    assert not got.up("app0")
    assert got.value("app_temperature") == 21.5
    assert got.up("envoy")
