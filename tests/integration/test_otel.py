"""OpenTelemetry of a whole data plane: metrics pushed by policy, the pipe, and what is announced."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest

from kumadp.daemon.status_schema import StatusReport
from tests.integration.test_metrics import INTERVAL, serve
from tests.support.collector import client, grpc_collector, message
from tests.support.dynconf import with_etags, without
from tests.support.kuma_control_plane import KumaControlPlane
from tests.support.kuma_resources import otel_backend
from tests.support.poll import poll
from tests.support.rig import NAME, SOON, Rig
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.collector import Collector
    from tests.support.loaded_rig import LoadedRig
    from tests.support.metrics_exporter import Exporter

pytestmark = [pytest.mark.process, pytest.mark.linger(0.0)]

SECRET = "secret-of-the-collector"
HEADERS = {"OTEL_EXPORTER_OTLP_HEADERS": f"api-key={SECRET}"}


def mesh_metric(rig: Rig, exporter: Exporter, every: str, **more: Any) -> str:
    """A policy whose metrics go to a socket where Envoy would listen."""
    backend = {"type": "OpenTelemetry", "name": None}
    inner = {"endpoint": str(rig.work / "kuma-otel-c.sock"), "refreshInterval": every}
    application = {"name": "app", "path": "/metrics", "port": exporter.port, "address": ""}
    metrics = {"applications": [application], "backends": [{**backend, "openTelemetry": inner}], **more}
    return json.dumps({"observability": {"metrics": metrics}})


def pipe(rig: Rig, port: int, **more: Any) -> str:
    backend = {
        "name": "c",
        "socketPath": str(rig.work / "kuma-otel-c.sock"),
        "endpoint": f"127.0.0.1:{port}",
        "useHTTP": False,
        "traces": {"enabled": True},
        "logs": {"enabled": True},
        **more,
    }
    return json.dumps({"backends": [backend]})


def scopes(collector: Collector, name: str) -> set[str]:
    return {scope for _, _, _, scope in collector.points(name)}


@pytest.mark.parametrize("generation", ["2.8", "2.13"])
def test_metrics_are_pushed_while_there_is_a_policy(rig: Rig, exporter: Exporter, generation: str) -> None:
    def routes(every: str, **more: Any) -> list[Any]:
        body = mesh_metric(rig, exporter, every, **more)
        return without(body) if generation == "2.8" else with_etags({"/meshmetric": body})

    with rig.run(environment={**INTERVAL, **HEADERS}) as daemon:
        rig.wait_ready(daemon)
        with grpc_collector(f"unix:{rig.work}/kuma-otel-c.sock") as (collector, _):
            serve(rig, routes("500ms", extraLabels={"mesh": "default", "team": "red"}))
            poll(lambda: len(collector.points("app_requests_total")) >= 2, what="two pushes", deadline=SOON)
            metric, point, attributes, scope = collector.points("app_requests_total")[-1]
            assert metric.sum.is_monotonic
            assert (point.as_double, attributes["team"], attributes["path"], scope) == (1.0, "red", "/metrics", "app")
            assert scopes(collector, "envoy_server_live") == {"envoy"}
            assert scopes(collector, "kumadp_scrape_source_up") == {"kumadp"}
            # Basic: what is counted of Kuma's own clusters is not pushed.
            names = {
                attributes.get("envoy_cluster_name")
                for _, _, attributes, _ in collector.points("envoy_cluster_upstream_cx_total")
            }
            assert "backend" in names
            assert "ads_cluster" not in names
            # Envoy reports histograms some seconds after their first value.
            _, point, _, _ = poll(
                lambda: collector.points("envoy_server_initialization_time_ms"), what="a histogram", deadline=SOON
            )[-1]
            assert sum(point.bucket_counts) == point.count == 1
            assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
            resource = collector.of("metrics")[0].message.resource_metrics[0].resource
            assert {attribute.key: attribute.value.string_value for attribute in resource.attributes}[
                "service.name"
            ] == "backend"
            assert collector.of("metrics")[0].headers["api-key"] == SECRET
            status = rig.status(daemon)["otel"]
            assert next(iter(status["push"].values()))["pushed"] >= 1
            serve(rig, routes("500ms", backends=[]))
            poll(lambda: rig.status(daemon)["otel"]["push"] == {}, what="the end of the push", deadline=SOON)
            serve(rig, routes("1h"))
            poll(lambda: rig.status(daemon)["otel"]["push"], what="a push again", deadline=SOON)
            serve(rig, None)
            # The whole policy goes: kuma-dp would push for ever.
            poll(lambda: rig.status(daemon)["otel"]["push"] == {}, what="the end of the policy", deadline=SOON)
        assert rig.status(daemon)["concerns"] == []


def test_everything_is_pushed_once_more_at_the_stop(rig: Rig, exporter: Exporter) -> None:
    with grpc_collector(f"unix:{rig.folder}/receiver.sock") as (collector, _), rig.run(environment=INTERVAL) as daemon:
        rig.wait_ready(daemon)
        body = mesh_metric(rig, exporter, "1h").replace(f"{rig.work}/kuma-otel-c.sock", f"{rig.folder}/receiver.sock")
        serve(rig, with_etags({"/meshmetric": body}))
        poll(lambda: rig.status(daemon)["otel"]["push"], what="the policy", deadline=SOON)
        assert not collector.exports
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(SOON) == 0
        # Envoy was still there to be scraped.
        assert scopes(collector, "envoy_server_live") == {"envoy"}
        assert scopes(collector, "app_requests_total") == {"app"}


def test_an_unreachable_receiver_is_a_warning(rig: Rig, exporter: Exporter) -> None:
    short = {"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "300"}
    with rig.run(environment={**INTERVAL, **short}) as daemon:
        rig.wait_ready(daemon)
        serve(rig, with_etags({"/meshmetric": mesh_metric(rig, exporter, "200ms")}))
        assert "UNAVAILABLE" in rig.wait_warning(daemon, "OpenTelemetry push to kuma-otel-c.sock")
        assert rig.serves()
        with grpc_collector(f"unix:{rig.work}/kuma-otel-c.sock") as (collector, _):
            poll(lambda: collector.exports, what="a push", deadline=SOON)
            poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(SOON) == 0


def test_the_pipe_is_announced_served_and_removed(rig: Rig, exporter: Exporter) -> None:
    environment = {**INTERVAL, **HEADERS, "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "5000"}
    with grpc_collector("127.0.0.1:0") as (collector, port), rig.run(environment=environment) as daemon:
        rig.wait_ready(daemon)
        plane = rig.plane
        assert isinstance(plane, XdsControlPlane)
        request = plane.bootstrap_requests[-1]
        assert "feature-otel-via-kuma-dp" in request["features"]
        assert request["otelEnv"]["pipeEnabled"] is True
        assert request["otelEnv"]["shared"]["headersPresent"] is True
        assert SECRET not in json.dumps(request)
        metrics = {"enabled": True, "refreshInterval": "500ms"}
        policy = mesh_metric(rig, exporter, "1h", backends=[])
        serve(rig, with_etags({"/otel": pipe(rig, port, metrics=metrics), "/meshmetric": policy}))
        socket = rig.work / "kuma-otel-c.sock"
        poll(socket.exists, what="the socket", deadline=SOON)
        with client(socket) as stubs:
            for signal_name in ("traces", "logs"):
                stubs[signal_name](message(signal_name), timeout=20)
                assert collector.of(signal_name)[0].headers["api-key"] == SECRET
        # Metrics of Envoy and the application go the same way.
        poll(lambda: scopes(collector, "app_requests_total") == {"app"}, what="pushed metrics", deadline=SOON)
        assert scopes(collector, "envoy_server_live") == {"envoy"}
        # As documented.
        msgspec.convert(rig.status(daemon), StatusReport)
        status = rig.status(daemon)["otel"]
        assert status["pipe"]["kuma-otel-c.sock"]["signals"]["logs"]["sent"] == 1
        assert SECRET not in json.dumps(rig.status(daemon)) + daemon.output()
        for child in daemon.children().values():
            assert SECRET not in json.dumps(psutil.Process(child.pid).environ())
        serve(rig, with_etags({"/meshmetric": policy}))
        poll(lambda: not socket.exists(), what="the end of the socket", deadline=SOON)
        poll(lambda: rig.status(daemon)["otel"]["push"] == {}, what="the end of the push", deadline=SOON)
        assert rig.status(daemon)["concerns"] == []


def test_a_pipe_that_is_off_is_not_announced(rig: Rig) -> None:
    off = {"KUMA_DATAPLANE_RUNTIME_OTEL_PIPE_ENABLED": "false"}
    with rig.run(environment={**INTERVAL, **off}) as daemon:
        rig.wait_ready(daemon)
        plane = rig.plane
        assert isinstance(plane, XdsControlPlane)
        request = plane.bootstrap_requests[-1]
        assert "feature-otel-via-kuma-dp" not in request["features"]
        assert "otelEnv" not in request


def test_without_the_extra_a_warning_names_what_to_install(rig: Rig, exporter: Exporter, tmp_path: Path) -> None:
    # A package of that name without what the extra has.
    hiding = tmp_path / "hiding" / "opentelemetry"
    hiding.mkdir(parents=True)
    (hiding / "__init__.py").touch()
    with rig.run(environment={**INTERVAL, "PYTHONPATH": str(hiding.parent)}) as daemon:
        rig.wait_ready(daemon)
        plane = rig.plane
        assert isinstance(plane, XdsControlPlane)
        assert "feature-otel-via-kuma-dp" not in plane.bootstrap_requests[-1]["features"]
        serve(rig, with_etags({"/meshmetric": mesh_metric(rig, exporter, "200ms")}))
        assert "kumadp[otel]" in rig.wait_warning(daemon, "OpenTelemetry")
        assert rig.serves()
        serve(rig, None)
        poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
        assert daemon.output().count("metrics are not pushed") == 1
        # Whoever follows does not need it either.
        daemon.process.send_signal(signal.SIGUSR1)
        poll(lambda: rig.count(daemon) == 1, what="the next program", deadline=SOON)
        assert rig.status(daemon)["reexec"] == {"count": 1}


def test_grpc_is_imported_only_if_needed(rig: Rig) -> None:
    with rig.run(environment=INTERVAL) as daemon:
        rig.wait_ready(daemon)
        maps = psutil.Process(daemon.process.pid).memory_maps()
        assert not [mapped.path for mapped in maps if "/grpc/" in mapped.path or "/google/" in mapped.path]


@pytest.mark.linger(10.0)
def test_the_pipe_survives_a_reload_and_a_reexecution(loaded_rig: LoadedRig) -> None:
    socket = loaded_rig.work / "kuma-otel-c.sock"
    with grpc_collector("127.0.0.1:0") as (collector, port), contextlib.ExitStack() as stack:
        daemon = stack.enter_context(loaded_rig.up(environment=INTERVAL))
        serve(loaded_rig, with_etags({"/otel": pipe(loaded_rig, port)}))
        poll(socket.exists, what="the socket", deadline=SOON)
        loaded_rig.reload(daemon)
        inode = socket.stat().st_ino
        loaded_rig.reexec(daemon)
        assert socket.stat().st_ino == inode
        with client(socket) as stubs:
            # What arrives before the pipe is announced again waits in its socket.
            stubs["logs"](message("logs"), timeout=20, wait_for_ready=True)
        assert len(collector.of("logs")) == 1


@pytest.mark.contract("MeshMetric pushed to OpenTelemetry, and stopped with the policy")
@pytest.mark.kuma_cp
def test_mesh_metric_of_a_real_control_plane(kuma_rig: Rig, exporter: Exporter) -> None:
    """Through the listener and the cluster that the control plane gives Envoy, to a collector; applied and removed."""
    plane = kuma_rig.plane
    assert isinstance(plane, KumaControlPlane)
    with grpc_collector("127.0.0.1:0") as (collector, port), kuma_rig.run() as daemon:
        kuma_rig.wait_ready(daemon)
        where: dict[str, Any] = {"endpoint": f"127.0.0.1:{port}"}
        if not plane.by_tags:
            plane.put_resource(otel_backend(port))
            where = {"backendRef": {"kind": "MeshOpenTelemetryBackend", "labels": {"app": "collector"}}}
        default = {
            "applications": [{"name": "app", "path": "/metrics", "port": exporter.port}],
            "backends": [{"type": "OpenTelemetry", "openTelemetry": {**where, "refreshInterval": "1s"}}],
        }
        spec = {"targetRef": {"kind": "Mesh"}, "default": default}
        policy = {"type": "MeshMetric", "mesh": "default", "name": "all", "spec": spec}
        plane.put("/meshes/default/meshmetrics/all", policy)
        poll(lambda: len(collector.points("app_requests_total")) >= 2, what="metrics at the collector", deadline=SOON)
        _, _, attributes, _ = collector.points("app_requests_total")[-1]
        labels = {"mesh": "default", "dataplane": NAME, "service": "backend"}
        if not plane.by_tags:
            labels = {"mesh": "default", "kuma.proxy_role": "sidecar"}
        assert {name: attributes.get(name) for name in labels} == labels
        assert collector.points("envoy_server_live")
        plane.delete("/meshes/default/meshmetrics/all")
        poll(lambda: kuma_rig.status(daemon)["otel"]["push"] == {}, what="the end of the push", deadline=SOON)
        number = len(collector.exports)
        poll(lambda: kuma_rig.status(daemon)["dynconf"]["paths"]["/meshmetric"]["body"] is None, what="no policy")
        assert len(collector.exports) == number
        assert [labels for labels in kuma_rig.status(daemon)["concerns"] if "OpenTelemetry" in labels] == []
