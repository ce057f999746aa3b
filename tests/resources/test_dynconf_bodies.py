"""The three bodies: as real control planes send them, and invalid ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kumadp.resources.dynconf_bodies import (
    BODIES,
    DNS,
    MESH_METRIC,
    OTEL,
    DnsBody,
    DnsRecord,
    InvalidBody,
    MeshMetricApplication,
    MeshMetricBody,
    MetricProfile,
    MetricProfiles,
    MetricsBackend,
    MetricSelector,
    OpenTelemetryBackend,
    OtelBody,
    OtelEnvPolicy,
    PipeBackend,
    PipeSignal,
    SidecarMetrics,
    decode,
)

CAPTURES = Path(__file__).resolve().parents[1] / "data/captures/kuma-2.13.5"
CAPTURES_3 = CAPTURES.with_name("kuma-3.0-dev")


def encode(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def test_the_metrics_of_a_real_control_plane() -> None:
    body = decode(MESH_METRIC, (CAPTURES / "full/dynconf/meshmetric.json").read_bytes())
    assert isinstance(body, MeshMetricBody)
    metrics = body.observability.metrics
    assert metrics.applications == (MeshMetricApplication(8081, "/metrics", "127.0.0.1", "app"),)
    assert metrics.backends == (MetricsBackend("Prometheus"),)
    assert metrics.sidecar is None
    assert metrics.extra_labels is not None
    assert metrics.extra_labels["kuma_io_service"] == "backend"


def test_the_names_of_a_real_control_plane() -> None:
    body = decode(DNS, (CAPTURES / "tp/dynconf/dns.json").read_bytes())
    assert body == DnsBody((DnsRecord("backend.mesh", ("240.0.0.0", "::ffff:f000:0")),), 30)


def test_kuma_3_has_fewer_labels() -> None:
    body = decode(MESH_METRIC, (CAPTURES_3 / "full/dynconf/meshmetric.json").read_bytes())
    assert isinstance(body, MeshMetricBody)
    metrics = body.observability.metrics
    assert metrics.extra_labels == {"kuma.proxy_role": "sidecar", "mesh": "default", "zone": "default"}


def test_the_names_of_kuma_3() -> None:
    body = decode(DNS, (CAPTURES_3 / "tp/dynconf/dns.json").read_bytes())
    assert isinstance(body, DnsBody)
    assert body.records is not None
    assert body.records[0] == DnsRecord("web.svc.mesh.local", ("241.0.0.0", "::ffff:f100:0"))
    assert (body.ttl, body.extra_labels) == (30, {"kuma_io_zone": "default", "mesh": "default"})


def test_all_fields_of_meshmetric() -> None:
    metrics = {
        "applications": None,
        "backends": [
            {
                "type": "OpenTelemetry",
                "name": "collector",
                "openTelemetry": {"endpoint": "/run/kumadp/kuma-otel-collector.sock", "refreshInterval": "1m0s"},
            }
        ],
        "sidecar": {
            "profiles": {
                "appendProfiles": [{"name": "Basic"}],
                "exclude": [{"type": "Regex", "match": "envoy_.*"}],
                "include": [{"type": "Contains", "match": "rq"}],
            },
            "includeUnused": True,
        },
        "extraLabels": None,
    }
    body = decode(MESH_METRIC, encode({"observability": {"metrics": metrics}}))
    assert isinstance(body, MeshMetricBody)
    decoded = body.observability.metrics
    push = OpenTelemetryBackend("/run/kumadp/kuma-otel-collector.sock", "1m0s")
    assert decoded.backends == (MetricsBackend("OpenTelemetry", "collector", push),)
    profiles = MetricProfiles(
        (MetricProfile("Basic"),), (MetricSelector("Regex", "envoy_.*"),), (MetricSelector("Contains", "rq"),)
    )
    assert decoded.sidecar == SidecarMetrics(profiles, include_unused=True)
    assert decoded.applications is None
    assert decoded.extra_labels is None


def test_all_fields_of_otel() -> None:
    backend = {
        "name": "collector",
        "socketPath": "/run/kumadp/kuma-otel-collector.sock",
        "endpoint": "collector:4318",
        "useHTTP": True,
        "useHTTPS": True,
        "path": "/otlp",
        "envPolicy": {"mode": "Optional", "precedence": "EnvFirst", "allowSignalOverrides": True},
        "traces": {
            "enabled": True,
            "envInputPresent": True,
            "overrideKinds": ["endpoint"],
            "missingFields": ["headers"],
            "blockedReasons": ["RequiredEnvMissing"],
        },
        "metrics": {"enabled": True, "refreshInterval": "30s"},
    }
    body = decode(OTEL, encode({"backends": [backend]}))
    traces = PipeSignal(
        enabled=True,
        env_input_present=True,
        override_kinds=("endpoint",),
        missing_fields=("headers",),
        blocked_reasons=("RequiredEnvMissing",),
    )
    assert body == OtelBody(
        (
            PipeBackend(
                "/run/kumadp/kuma-otel-collector.sock",
                "collector:4318",
                name="collector",
                use_http=True,
                use_https=True,
                path="/otlp",
                env_policy=OtelEnvPolicy("Optional", "EnvFirst", allow_signal_overrides=True),
                traces=traces,
                metrics=PipeSignal(enabled=True, refresh_interval="30s"),
            ),
        )
    )


def test_fields_of_2_14_and_unknown_fields_of_dns() -> None:
    tree = {"records": [{"name": "a.mesh", "ips": None, "new": [1]}], "ttl": 5, "extraLabels": {"mesh": "default"}}
    body = decode(DNS, encode({**tree, "more": {"of": "it"}}))
    assert body == DnsBody((DnsRecord("a.mesh"),), 5, {"mesh": "default"})


@pytest.mark.parametrize(
    ("path", "tree", "field"),
    [
        (DNS, {"records": [{"name": "a.mesh", "ips": ["::1"]}, {"name": "b.mesh", "ips": [4]}]}, "$.records[1].ips[0]"),
        (DNS, {"ttl": "30"}, "$.ttl"),
        (DNS, {"records": [{"ips": []}]}, "$.records[0]"),
        (MESH_METRIC, {"observability": {"metrics": {"applications": [{"port": 70000}]}}}, "applications[0].port"),
        (MESH_METRIC, {}, "observability"),
        (OTEL, {"backends": [{"endpoint": "collector:4317"}]}, "$.backends[0]"),
    ],
)
def test_an_error_names_the_field(path: str, tree: Any, field: str) -> None:
    with pytest.raises(InvalidBody) as caught:
        decode(path, encode(tree))
    assert field in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"<html>", b'{"ttl":30', b"\xff", b"[]"])
@pytest.mark.parametrize("path", BODIES)
def test_invalid_json(path: str, data: bytes) -> None:
    with pytest.raises(InvalidBody):
        decode(path, data)


def test_invalid_utf_8() -> None:
    with pytest.raises(InvalidBody):
        decode(DNS, b'{"records":[{"name":"\xff"}]}')


@pytest.mark.parametrize("path", BODIES)
def test_deep_nesting(path: str) -> None:
    with pytest.raises(InvalidBody):
        decode(path, b'{"unknown":' + b"[" * 1_000_000)


def test_an_error_quotes_no_value() -> None:
    with pytest.raises(InvalidBody) as caught:
        decode(DNS, encode({"ttl": "a secret"}))
    assert "secret" not in str(caught.value)
