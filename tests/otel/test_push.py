"""Metrics pushed by the official exporter to the official protocol's services, on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from kumadp.exposition.reader import ExpositionReader
from kumadp.host.log.secrets import register
from kumadp.otel.export_types import ExportOptions
from kumadp.otel.push import Pusher
from tests.support.collector import grpc_collector
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from kumadp.exposition.reader import Piece

pytestmark = pytest.mark.process

TEXT = b'# TYPE asked_total counter\nasked_total{c="a"} 7\n# TYPE up gauge\nup 1\n'


class Rig:
    """A pusher that runs, and what it says."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "otel.sock"
        self.concerns: dict[str, str] = {}
        self.text, self.asked = TEXT, 0
        self.options = ExportOptions("web", {"Api-Key": "k"}, timeout=5.0)
        self.pusher = Pusher(self._said, lambda: self.options, concern=self.concerns.__setitem__, flush=3.0)
        self.task = asyncio.create_task(self.pusher.run(lambda: None))

    async def _said(self, _seconds: float) -> AsyncIterator[tuple[str, Piece]]:
        self.asked += 1
        reader = ExpositionReader(checks=False)
        for piece in (*reader.feed(self.text), *reader.end()):
            yield "envoy", piece

    def every(self, seconds: float) -> None:
        self.pusher.apply({str(self.socket): seconds})

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    def status(self) -> dict[str, Any]:
        found: Any = self.pusher.status()
        status: dict[str, Any] = found[str(self.socket)]
        return status


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    await asyncio.sleep(0)
    yield made
    await made.stop()


async def seen(probe: Callable[[], Any], what: str) -> None:
    async def ask() -> Any:
        return probe()

    await poll_async(ask, what=what)


async def test_pushed_every_period_with_headers_and_resource(rig: Rig) -> None:
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        rig.every(0.2)
        await seen(lambda: len(collector.points("asked_total")) >= 2, "two pushes")
        export = collector.of("metrics")[0]
        assert export.headers["api-key"] == "k"
        resource = {one.key: one.value.string_value for one in export.message.resource_metrics[0].resource.attributes}
        assert resource["service.name"] == "web"
        metric, point, attributes, scope = collector.points("asked_total")[0]
        assert (metric.sum.is_monotonic, point.as_double, attributes, scope) == (True, 7.0, {"c": "a"}, "envoy")
        await seen(lambda: rig.status()["pushed"] >= 2, "it in the status")
    # Collecting garbage stops the loop: what the SDK consists of is not looked through.
    assert gc.get_freeze_count() > 10_000
    assert not any(rig.concerns.values())


async def test_a_dead_receiver_is_a_concern_until_it_is_there(rig: Rig) -> None:
    register("secret-of-headers")
    rig.options = ExportOptions(headers={"key": "secret-of-headers"}, timeout=0.2)
    rig.every(0.1)
    await seen(lambda: rig.concerns.get(str(rig.socket)), "a concern")
    assert "UNAVAILABLE" in rig.concerns[str(rig.socket)]
    assert rig.status()["last_failure"] == rig.concerns[str(rig.socket)]
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        await seen(lambda: collector.points("up"), "a push")
        await seen(lambda: not rig.concerns[str(rig.socket)], "no concern")


async def test_a_slow_receiver_stalls_nothing(rig: Rig) -> None:
    rig.options = ExportOptions(timeout=0.5)
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        collector.held = threading.Event()
        rig.every(0.1)
        await seen(lambda: collector.requests, "asked")
        turns = 0
        while not rig.concerns.get(str(rig.socket)):
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 5
        assert "DEADLINE_EXCEEDED" in rig.concerns[str(rig.socket)]
        collector.held.set()
        collector.held = None
        await seen(lambda: not rig.concerns[str(rig.socket)], "no concern")


async def test_a_receiver_that_refuses_is_quoted(rig: Rig) -> None:
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        collector.refuses = (grpc.StatusCode.PERMISSION_DENIED, "go away")
        rig.every(0.1)
        await seen(lambda: rig.concerns.get(str(rig.socket)), "a concern")
        assert "PERMISSION_DENIED" in rig.concerns[str(rig.socket)]
        assert "go away" in rig.concerns[str(rig.socket)]


async def test_everything_once_more_at_the_stop(rig: Rig) -> None:
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        rig.every(3600)
        await asyncio.sleep(0)
        await rig.stop()
        assert [value.as_double for _, value, _, _ in collector.points("asked_total")] == [7.0]
        # A policy that comes now is too late.
        rig.every(0.1)
        assert rig.pusher.status() == {}


async def test_the_stop_is_bounded(rig: Rig, tmp_path: Path) -> None:
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        collector.held = threading.Event()
        rig.pusher._flush = 0.2
        rig.every(3600)
        async with asyncio.timeout(20):
            await rig.stop()
        assert not collector.exports


async def test_removed_means_no_more(rig: Rig) -> None:
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        rig.every(0.05)
        await seen(lambda: collector.exports, "a push")
        rig.pusher.apply({})
        assert rig.pusher.status() == {}
        number = rig.asked
        await asyncio.sleep(0.3)
        assert rig.asked == number


async def test_only_another_period_begins_anew(rig: Rig) -> None:
    rig.every(3600)
    target = rig.pusher._targets[str(rig.socket)]
    rig.every(3600)
    assert rig.pusher._targets[str(rig.socket)] is target
    rig.every(1800)
    assert rig.pusher._targets[str(rig.socket)] is not target
    rig.pusher.apply({})


async def test_a_large_exposition_in_many_messages(rig: Rig) -> None:
    rig.text = b"# TYPE a gauge\n" + b"".join(b'a{x="%d"} %d\n' % (number, number) for number in range(20_000))
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        rig.every(3600)
        await rig.stop()
        assert len(collector.points("a")) == 20_000
        assert len(collector.exports) >= 10
