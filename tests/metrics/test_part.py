"""The service that metrics and OTLP name the data plane by."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kumadp.bootstrap.admin_address import UnixAdmin
from kumadp.bootstrap.prepare import Fetched, Prepared
from kumadp.core.context import Context, Inputs
from kumadp.metrics.part import MetricsPart
from kumadp.resources.load import load_resource
from kumadp.settings.model import Settings

DATAPLANE = """\
type: Dataplane
mesh: default
name: web-1
networking:
  address: 192.0.2.1
  inbound: [{port: 80, protocol: http}]
"""
TAGGED = DATAPLANE.replace("protocol: http", "protocol: http, tags: {kuma.io/service: web}")


def service(cluster: str, text: str = "") -> str:
    resource = load_resource(text, "dp.yaml") if text else None

    async def of_part() -> str:
        context = Context(Inputs(Settings(), resource, {}))
        fetched = Fetched({"node": {"cluster": cluster}}, None, 0.0)
        context.bootstrap = Prepared(
            Path("bootstrap.json"), UnixAdmin("/run/admin"), None, dynamic=True, fetched=fetched
        )
        part = MetricsPart(context, admin=lambda: None, coredns=lambda: None, own=lambda: asyncio.sleep(0, (b"", "")))
        return part.service

    return asyncio.run(of_part())


@pytest.mark.parametrize(
    ("cluster", "text", "expected"),
    [
        ("web", TAGGED, "web"),
        ("edge", TAGGED, "edge"),
        ("unknown", TAGGED, "web"),
        ("unknown", TAGGED + "labels: {kuma.io/workload: shop}\n", "shop"),
        ("unknown", DATAPLANE, ""),
        ("unknown", "", ""),
        ("", TAGGED, ""),
    ],
)
def test_unknown_is_no_service(cluster: str, text: str, expected: str) -> None:
    assert service(cluster, text) == expected
