"""A real Envoy in front of the pipe, as Kuma 2.14 has it write access logs and traces."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.otel.backend_spec import BackendSpec
from kumadp.otel.pipe import Pipe
from kumadp.otel.routes import Collector, Route
from tests.support.collector import grpc_collector
from tests.support.daemon import get
from tests.support.poll import poll_async
from tests.support.ports import free_ports
from tests.support.xds.envoy import DirectEnvoy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process

_TYPE = "type.googleapis.com/envoy."
_CLUSTER = {"envoyGrpc": {"clusterName": "pipe"}, "timeout": "5s"}


def bootstrap(socket: Path, port: int, admin: int) -> dict[str, Any]:
    """A listener that responds directly, and sends access logs and traces to the socket."""
    manager = {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "statPrefix": "in",
        "routeConfig": {
            "virtualHosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "directResponse": {"status": 200}}],
                }
            ]
        },
        "httpFilters": [
            {
                "name": "router",
                "typedConfig": {"@type": _TYPE + "extensions.filters.http.router.v3.Router"},
            }
        ],
        "accessLog": [
            {
                "name": "otel",
                "typedConfig": {
                    "@type": _TYPE + "extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
                    "commonConfig": {
                        "logName": "log",
                        "grpcService": _CLUSTER,
                        "transportApiVersion": "V3",
                        "bufferFlushInterval": "0.1s",
                    },
                    "body": {"stringValue": "%REQ(:PATH)%"},
                },
            }
        ],
        "tracing": {
            "randomSampling": {"value": 100},
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typedConfig": {
                    "@type": _TYPE + "config.trace.v3.OpenTelemetryConfig",
                    "grpcService": _CLUSTER,
                    "serviceName": "web",
                },
            },
        },
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typedConfig": manager}]}
    address = {"socketAddress": {"address": "127.0.0.1", "portValue": port}}
    options: dict[str, Any] = {"explicitHttpConfig": {"http2ProtocolOptions": {}}}
    cluster = {
        "name": "pipe",
        "typedExtensionProtocolOptions": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
                **options,
            }
        },
        "loadAssignment": {
            "clusterName": "pipe",
            "endpoints": [{"lbEndpoints": [{"endpoint": {"address": {"pipe": {"path": str(socket)}}}}]}],
        },
    }
    return {
        "node": {"id": "web", "cluster": "web"},
        "admin": {"address": {"socketAddress": {"address": "127.0.0.1", "portValue": admin}}},
        "staticResources": {
            "listeners": [{"name": "in", "address": address, "filterChains": [chain]}],
            "clusters": [cluster],
        },
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="k") as name:
        yield Path(name)


async def test_access_logs_and_traces_of_an_envoy_reach_the_collector(folder: Path) -> None:
    socket = folder / "kuma-otel-b.sock"
    port, admin = free_ports(2)
    envoy = DirectEnvoy(folder, bootstrap(socket, port, admin))
    pipe = Pipe(folder, lambda _backend, _warning: None)
    pipe_task = asyncio.create_task(pipe.run(lambda: None))
    try:
        with grpc_collector("127.0.0.1:0") as (collector, at):
            route = Route(Collector("grpc", f"127.0.0.1:{at}"), headers={"key": "k"}, gzip=True)
            await asyncio.sleep(0)
            await pipe.apply([BackendSpec("b", socket, dict.fromkeys(("traces", "logs", "metrics"), route))])
            await asyncio.to_thread(envoy.start)
            await asyncio.to_thread(envoy.wait_live)
            for number in range(20):
                assert (await asyncio.to_thread(get, port, f"/n{number}"))[0] == 200

            def bodies() -> list[str]:
                return [
                    record.body.string_value
                    for export in collector.of("logs")
                    for resource in export.message.resource_logs
                    for scope in resource.scope_logs
                    for record in scope.log_records
                ]

            async def all_of_them() -> bool:
                return len(bodies()) >= 20 and bool(collector.of("traces"))

            await poll_async(all_of_them, what="logs and traces")
            assert bodies() == [f"/n{number}" for number in range(20)]
            assert collector.of("traces")[0].headers["key"] == "k"
    finally:
        await asyncio.to_thread(envoy.close)
        pipe_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pipe_task
