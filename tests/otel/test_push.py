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

TEXT = b'# TYPE served_total counter\nserved_total{c="a"} 7\n# TYPE up gauge\nup 1\n'


class Rig:
    """A pusher with its metrics, and its warnings."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "otel.sock"
        self.warnings: dict[str, str] = {}
        self.text, self.reads = TEXT, 0
        self.options = ExportOptions("web", {"Api-Key": "k"}, timeout=5.0)
        self.pusher = Pusher(self._pieces, lambda: self.options, set_warning=self.warnings.__setitem__, flush=3.0)
        self.task = asyncio.create_task(self.pusher.run(lambda: None))

    async def _pieces(self, _seconds: float) -> AsyncIterator[tuple[str, Piece]]:
        self.reads += 1
        reader = ExpositionReader(checks=False)
        for piece in (*reader.feed(self.text), *reader.end()):
            yield "envoy", piece

    def push_every(self, seconds: float) -> None:
        self.pusher.apply({str(self.socket): seconds})

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    def status(self) -> dict[str, Any]:
        status_by_path: Any = self.pusher.status()
        status: dict[str, Any] = status_by_path[str(self.socket)]
        return status


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    await asyncio.sleep(0)
    yield rig
    await rig.stop()


async def wait_until(probe: Callable[[], Any], what: str) -> None:
    async def check() -> Any:
        return probe()

    await poll_async(check, what=what)


async def test_pushed_every_period_with_headers_and_resource(rig: Rig) -> None:
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        rig.push_every(0.2)
        await wait_until(lambda: len(collector.points("served_total")) >= 2, "two pushes")
        export = collector.of("metrics")[0]
        assert export.headers["api-key"] == "k"
        resource_attributes = export.message.resource_metrics[0].resource.attributes
        resource = {attribute.key: attribute.value.string_value for attribute in resource_attributes}
        assert resource["service.name"] == "web"
        metric, point, attributes, scope = collector.points("served_total")[0]
        assert (metric.sum.is_monotonic, point.as_double, attributes, scope) == (True, 7.0, {"c": "a"}, "envoy")
        await wait_until(lambda: rig.status()["pushed"] >= 2, "the status")
    # Garbage collection stops the loop: the modules of the SDK are exempt.
    assert gc.get_freeze_count() > 10_000
    assert not any(rig.warnings.values())


async def test_an_unreachable_receiver_is_a_warning_until_it_is_back(rig: Rig) -> None:
    register("secret-of-headers")
    rig.options = ExportOptions(headers={"key": "secret-of-headers"}, timeout=0.2)
    rig.push_every(0.1)
    await wait_until(lambda: rig.warnings.get(str(rig.socket)), "a warning")
    assert "UNAVAILABLE" in rig.warnings[str(rig.socket)]
    assert rig.status()["last_failure"] == rig.warnings[str(rig.socket)]
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        await wait_until(lambda: collector.points("up"), "a push")
        await wait_until(lambda: not rig.warnings[str(rig.socket)], "no warning")


async def test_a_slow_receiver_does_not_block_the_event_loop(rig: Rig) -> None:
    rig.options = ExportOptions(timeout=0.5)
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        collector.held = threading.Event()
        rig.push_every(0.1)
        await wait_until(lambda: collector.requests, "the push")
        turns = 0
        while not rig.warnings.get(str(rig.socket)):
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 5
        assert "DEADLINE_EXCEEDED" in rig.warnings[str(rig.socket)]
        collector.held.set()
        collector.held = None
        await wait_until(lambda: not rig.warnings[str(rig.socket)], "no warning")


async def test_a_rejection_is_quoted(rig: Rig) -> None:
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        collector.refuses = (grpc.StatusCode.PERMISSION_DENIED, "go away")
        rig.push_every(0.1)
        await wait_until(lambda: rig.warnings.get(str(rig.socket)), "a warning")
        assert "PERMISSION_DENIED" in rig.warnings[str(rig.socket)]
        assert "go away" in rig.warnings[str(rig.socket)]


async def test_the_final_push_at_the_stop(rig: Rig) -> None:
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        rig.push_every(3600)
        await asyncio.sleep(0)
        await rig.stop()
        assert [value.as_double for _, value, _, _ in collector.points("served_total")] == [7.0]
        # A policy that arrives now is ignored.
        rig.push_every(0.1)
        assert rig.pusher.status() == {}


async def test_the_final_push_has_a_deadline(rig: Rig, tmp_path: Path) -> None:
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        collector.held = threading.Event()
        rig.pusher._flush = 0.2
        rig.push_every(3600)
        async with asyncio.timeout(20):
            await rig.stop()
        assert not collector.exports


async def test_a_removed_socket_is_not_pushed_to(rig: Rig) -> None:
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        rig.push_every(0.05)
        await wait_until(lambda: collector.exports, "a push")
        rig.pusher.apply({})
        assert rig.pusher.status() == {}
        reads = rig.reads
        await asyncio.sleep(0.3)
        assert rig.reads == reads


async def test_only_a_changed_period_restarts_a_target(rig: Rig) -> None:
    rig.push_every(3600)
    target = rig.pusher._targets[str(rig.socket)]
    rig.push_every(3600)
    assert rig.pusher._targets[str(rig.socket)] is target
    rig.push_every(1800)
    assert rig.pusher._targets[str(rig.socket)] is not target
    rig.pusher.apply({})


async def test_a_large_exposition_in_many_messages(rig: Rig) -> None:
    rig.text = b"# TYPE a gauge\n" + b"".join(b'a{x="%d"} %d\n' % (reads, reads) for reads in range(20_000))
    with grpc_collector(f"unix:{rig.socket}") as (collector, _):
        rig.push_every(3600)
        await rig.stop()
        assert len(collector.points("a")) == 20_000
        assert len(collector.exports) >= 10
