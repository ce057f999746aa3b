"""The exporter without the push in front: messages, deadline and failures."""

from __future__ import annotations

import threading
import time
import zlib
from typing import TYPE_CHECKING

import grpc
import pytest

from kumadp.exposition.reader import ExpositionReader
from kumadp.host.log.secrets import register
from kumadp.otel.export_types import CompressedPiece, ExportFailed, ExportOptions
from kumadp.otel.exporter import Exporter
from kumadp.otel.metric_mapper import BATCH
from tests.support.collector import grpc_collector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


def pieces(text: str, scope: str = "envoy") -> Iterator[CompressedPiece]:
    reader = ExpositionReader(checks=False)
    for family, samples in (*reader.feed(text.encode()), *reader.end()):
        yield CompressedPiece(scope, family, zlib.compress(samples))


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    exporter = Exporter(str(tmp_path / "c.sock"), ExportOptions("web", {"Api-Key": "k"}, gzip=True, timeout=0.3))
    yield exporter
    exporter.close()


def test_all_pieces_are_pushed_in_batches(exporter: Exporter, tmp_path: Path) -> None:
    lines = "".join(f'a{{x="{number}"}} {number}\n' for number in range(3 * BATCH))
    with grpc_collector(f"unix:{tmp_path}/c.sock") as (collector, _):
        assert exporter.push(pieces(f"# TYPE a gauge\n{lines}"), 30) == 3
    assert len(collector.points("a")) == 3 * BATCH
    assert {export.headers["api-key"] for export in collector.exports} == {"k"}


def test_attributes_are_named_as_requested(exporter: Exporter, tmp_path: Path) -> None:
    with grpc_collector(f"unix:{tmp_path}/c.sock") as (collector, _):
        names = {"kuma_workload": "kuma.workload"}
        assert exporter.push(pieces('# TYPE a gauge\na{kuma_workload="web"} 1\n'), 30, names) == 1
    ((_, _, attributes, _),) = collector.points("a")
    assert attributes["kuma.workload"] == "web"
    assert "kuma_workload" not in attributes


def test_what_is_exported_names_its_sdk_and_its_service(exporter: Exporter) -> None:
    attributes = exporter._resource.attributes
    assert {"telemetry.sdk.language", "telemetry.sdk.name", "telemetry.sdk.version"} < set(attributes)
    assert attributes["service.name"] == "web"


def test_no_metrics_are_no_message(exporter: Exporter) -> None:
    assert exporter.push(pieces("# TYPE a untyped\na 1\n"), 30) == 0


def test_a_failure_has_the_reason_of_the_sdk_without_secrets(exporter: Exporter, tmp_path: Path) -> None:
    register("exporter-secret")
    with grpc_collector(f"unix:{tmp_path}/c.sock") as (collector, _):
        collector.refuses = (grpc.StatusCode.PERMISSION_DENIED, "not with exporter-secret")
        with pytest.raises(ExportFailed, match=r"PERMISSION_DENIED.*not with \*\*\*"):
            exporter.push(pieces("# TYPE a gauge\na 1\n"), 30)


def test_the_deadline_is_checked_before_each_message(exporter: Exporter, tmp_path: Path) -> None:
    with grpc_collector(f"unix:{tmp_path}/c.sock"), pytest.raises(ExportFailed, match="within -1 s"):
        exporter.push(pieces("# TYPE a gauge\na 1\n"), -1)


def test_close_interrupts_a_push(tmp_path: Path) -> None:
    exporter = Exporter(str(tmp_path / "c.sock"), ExportOptions(timeout=60))
    failures: list[Exception] = []

    def push() -> None:
        try:
            exporter.push(pieces("# TYPE a gauge\na 1\n"), 60)
        except ExportFailed as error:
            failures.append(error)

    thread = threading.Thread(target=push)
    since = time.monotonic()
    # Nobody listens: the SDK retries for as long as its timeout allows.
    thread.start()
    time.sleep(0.3)
    exporter.close()
    thread.join(30)
    assert failures
    assert time.monotonic() - since < 30
