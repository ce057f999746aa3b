"""Metrics with a control plane of Kuma 3: its names of clusters and listeners, its labels, and no service."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from kumadp.bootstrap.admin_address import UnixAdmin
from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.prepare import Fetched, Prepared
from kumadp.core.context import Context, Inputs
from kumadp.exposition.reader import ExpositionReader
from kumadp.host.work_dir import WorkDir
from kumadp.metrics.part import MetricsPart
from kumadp.metrics.profiles import Selection
from kumadp.resources.dynconf_bodies import MESH_METRIC, MeshMetricBody, decode
from kumadp.settings.model import Settings

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
# The labels by which a series is recognised in both texts.
_NAMED = re.compile(rb'(envoy_(?:cluster_name|http_conn_manager_prefix|listener_address))="([^"]*)"')
Series = tuple[bytes, frozenset[tuple[bytes, bytes]]]


def series_of(text: bytes, selection: Selection | None = None) -> set[Series]:
    """Names of the samples of Envoy, with their cluster, connection manager or listener."""
    reader = ExpositionReader(checks=False)
    found = set()
    for piece in [*reader.feed(text), *reader.end()]:
        selected = selection.select(piece) if selection is not None else piece
        for line in selected.samples.splitlines() if selected is not None else ():
            name = line.partition(b"{")[0].partition(b" ")[0]
            if name.startswith(b"envoy_"):
                found.add((name, frozenset(_NAMED.findall(line))))
    return found


@pytest.mark.parametrize("version", ["kuma-2.13.5", "kuma-3.0-dev"])
def test_basic_has_no_series_of_kuma_s_own(version: str) -> None:
    own = (b"system_", b"_kuma", b"ads_cluster", b"access_log_sink", b"kuma_envoy_admin")
    folder = CAPTURES / version / "full"
    everything = series_of((folder / "envoy_stats.prom").read_bytes())
    selected = series_of((folder / "envoy_stats.prom").read_bytes(), Selection())
    for names, expected in ((everything, True), (selected, False)):
        assert any(value.startswith(own) for _, labels in names for _, value in labels) is expected


def test_basic_is_kuma_dp_s() -> None:
    folder = CAPTURES / "kuma-3.0-dev" / "full"
    selected = series_of((folder / "envoy_stats.prom").read_bytes(), Selection())
    theirs = series_of((folder / "merged_metrics_5670.prom").read_bytes())
    # Kuma's own are about single moments, or of the kuma-dp that pushed them.
    clusters = {value for name, labels in theirs for label, value in labels if label == b"envoy_cluster_name"}
    assert clusters == {b"kri_msvc_default_default__web_80", b"self_inbound_dp_main"}
    assert {series for series in theirs if series[1]} <= selected


def part_of(capture: str) -> MetricsPart:
    tree = parse_bootstrap((CAPTURES / capture / "bootstrap.yaml").read_bytes())
    context = Context(Inputs(Settings(name="web-01", mesh="default"), None, {}))
    prepared = Prepared(Path("bootstrap.yaml"), UnixAdmin("admin.sock"), None, dynamic=True)
    context.bootstrap = replace(prepared, fetched=Fetched(tree, None, 0.0))

    async def own() -> tuple[bytes, str]:
        return b"", ""

    return MetricsPart(context, admin=lambda: None, coredns=lambda: None, own=own)


@pytest.mark.parametrize(
    ("capture", "service"),
    [("kuma-2.13.5/full", "backend"), ("kuma-2.14.3/dataplane", "web"), ("kuma-3.0-dev/full", "")],
)
def test_unknown_is_no_service(capture: str, service: str) -> None:
    assert part_of(capture).service == service


def test_its_labels_pass_through() -> None:
    body = decode(MESH_METRIC, (CAPTURES / "kuma-3.0-dev/full/dynconf/meshmetric.json").read_bytes())
    assert isinstance(body, MeshMetricBody)
    labels = body.observability.metrics.extra_labels
    assert labels is not None
    assert part_of("kuma-3.0-dev/full")._labels(labels) == labels


async def test_collectors_get_its_labels_by_their_own_names(tmp_path: Path) -> None:
    """As from kuma-dp (2.13 to 3.0); names of Prometheus have no dots."""
    part = part_of("kuma-3.0-dev/full")
    part._context.work = WorkDir(tmp_path, tmp_path, tmp_path, temporary=False)
    assert part.attribute_names == {}
    await part.start()

    try:
        reader, writer = await asyncio.open_unix_connection(part._context.status.ports["metrics"])
        writer.write(b"GET /meshmetric HTTP/1.0\r\n\r\n")
        assert await reader.read()
        writer.close()
        body = decode(MESH_METRIC, (CAPTURES / "kuma-3.0-dev/full/dynconf/meshmetric.json").read_bytes())
        await part.apply_policy(cast("MeshMetricBody", body))
        assert part.attribute_names == {"kuma_proxy_role": "kuma.proxy_role"}
        await part.apply_policy(None)
        assert part.attribute_names == {}
    finally:
        await part._context.stack.leave()
