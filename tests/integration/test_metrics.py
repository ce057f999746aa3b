"""Metrics of a whole data plane: Envoy's and the application's, with a policy and without, through every change."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.host.socket_names import kuma_socket, metrics
from tests.support.daemon import get
from tests.support.dynconf import SOCKET, dynconf_listener, with_etags, without
from tests.support.expositions import Scraped, check
from tests.support.kuma_control_plane import KumaControlPlane
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.prometheus import Prometheus, need_prometheus, scraped
from tests.support.rig import NAME, NODE, SOON, Rig
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import LISTENER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.loaded_rig import LoadedRig
    from tests.support.metrics_exporter import Exporter
    from tests.support.xds.resources import Tree

pytestmark = [pytest.mark.process, pytest.mark.linger(0.0)]

INTERVAL = {"KUMA_DATAPLANE_RUNTIME_DYNAMIC_CONFIGURATION_REFRESH_INTERVAL": "100ms"}
MESH = ',kuma_io_mesh_traffic="true"'


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self._path)


def scrape(rig: Rig, target: str = "/") -> Scraped:
    """What Envoy's Prometheus listener would get."""
    connection = _Connection(kuma_socket(rig.work, metrics(NAME, "default")))
    with contextlib.closing(connection):
        connection.request("GET", target)
        answer = connection.getresponse()
        return Scraped(answer.status, dict(answer.getheaders()), answer.read().decode())


def policy(exporter: Exporter, **more: Any) -> str:
    application = {"name": "app", "path": "/metrics", "port": exporter.port, "address": ""}
    metrics = {"applications": [application], "backends": [{"type": "Prometheus", "name": None}], **more}
    return json.dumps({"observability": {"metrics": metrics}})


def serve(rig: Rig, routes: list[Tree] | None) -> None:
    plane = rig.plane
    assert isinstance(plane, XdsControlPlane)
    mesh = plane.mesh(NODE)
    if routes is None:
        mesh.remove(LISTENER, "_kuma:dynamicconfig")
        return
    listener = dynconf_listener(rig.work / SOCKET, routes)
    mesh.put(LISTENER, {name: value for name, value in listener.items() if name != "@type"})


def wait(rig: Rig, what: str, series: str, value: float | None, target: str = "/meshmetric") -> Scraped:
    return poll(
        lambda: page if (page := scrape(rig, target)).value(series) == value else None, what=what, deadline=SOON
    )


LABELLED = '{path="/metrics",dataplane="backend-01",mesh="default",otel_scope_name="app",service="backend"}'


@pytest.mark.parametrize("generation", ["2.8", "2.13"])
def test_a_policy_comes_changes_and_goes(rig: Rig, exporter: Exporter, generation: str) -> None:
    extra = {} if generation == "2.8" else {"mesh": "default", "dataplane": NAME, "service": "backend"}

    def routes(**more: Any) -> list[Tree]:
        body = policy(exporter, extraLabels=extra, **more)
        return without(body) if generation == "2.8" else with_etags({"/meshmetric": body})

    with rig.run(environment=INTERVAL) as daemon:
        rig.wait_ready(daemon)
        before = scrape(rig, "/meshmetric")
        assert before.up("envoy") is False  # its label set has more
        assert 'kumadp_scrape_source_up{source="envoy",dataplane="backend-01"' in before.text
        assert 'envoy_server_live{dataplane="backend-01",mesh="default",service="backend"} 1\n' in before.text
        serve(rig, routes())
        page = wait(rig, "the application", f"app_requests_total{LABELLED}", 1)
        assert "envoy_cluster_version" not in page.text
        assert "_kuma_dynamicconfig" not in page.text
        assert 'envoy_cluster_name="ads_cluster"' not in page.text
        assert not check(page.text)
        serve(rig, routes(sidecar={"profiles": {"appendProfiles": [{"name": "All"}]}, "includeUnused": True}))
        poll(lambda: "envoy_cluster_version" in scrape(rig, "/meshmetric").text, what="all", deadline=SOON)
        unused = scrape(rig, "/meshmetric").text
        serve(rig, routes(sidecar={"profiles": {"appendProfiles": [{"name": "All"}]}, "includeUnused": False}))
        poll(
            lambda: len(scrape(rig, "/meshmetric").text.splitlines()) < len(unused.splitlines()),
            what="what is used alone",
            deadline=SOON,
        )
        serve(rig, None)
        wait(rig, "no application", f"app_requests_total{LABELLED}", None)
        assert rig.status(daemon)["concerns"] == []


def test_the_legacy_metrics_port(rig: Rig, exporter: Exporter) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        page = scrape(rig, "/?filter=cluster.&usedonly")
        assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert f'envoy_cluster_upstream_rq_completed{{envoy_cluster_name="backend"{MESH}}}' in page.text
        assert 'envoy_cluster_upstream_cx_total{envoy_cluster_name="ads_cluster"} ' in page.text
        assert "envoy_server_live" not in page.text
        assert page.up("envoy")
        assert not check(page.text)
        assert rig.status(daemon)["metrics"]["sources"]["envoy"]["up"]
        assert (rig.work / f"kuma-mh-{NAME}-default.sock").stat().st_mode & 0o777 == 0o600


def test_a_prometheus_that_prefers_protobuf(rig: Rig, tmp_path: Path) -> None:
    """With native histograms Prometheus prefers protobuf, which Envoy 1.40 sends on request."""
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        rig.wait_traffic()
        socket_path = kuma_socket(rig.work, metrics(NAME, "default"))
        with scraped(tmp_path, socket_path, features="native-histograms") as prometheus:
            up = 'kumadp_scrape_source_up{source="envoy"} == 1'
            poll(lambda: prometheus.query(up), what="Envoy's metrics", deadline=SOON)
            bounds = prometheus.query('count by (le) ({__name__=~"envoy_cluster_upstream_cx_connect_ms_bucket"})')
        assert {"1.8e+06", "3.6e+06", "+Inf", "0.5"} <= {bucket["metric"]["le"] for bucket in bounds}


def test_without_an_envoy_it_is_answered_and_with_the_next_it_is_whole(rig: Rig) -> None:
    with rig.run() as daemon:
        rig.wait_ready(daemon)
        killed = daemon.kill_envoy()
        poll(lambda: not killed.is_running(), what="its end")
        assert scrape(rig).status == 200
        page = wait(rig, "metrics of the next Envoy", "envoy_server_live", 1, "/")
        assert page.up("envoy")


@pytest.mark.linger(10.0)
def test_through_a_reload_a_reexecution_and_an_adoption(loaded_rig: LoadedRig, exporter: Exporter) -> None:
    path = kuma_socket(loaded_rig.work, metrics(NAME, "default"))
    extra = {"mesh": "default", "dataplane": NAME, "service": "backend"}
    series = f"app_requests_total{LABELLED}"
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(loaded_rig.up(environment=INTERVAL))
        serve(loaded_rig, with_etags({"/meshmetric": policy(exporter, extraLabels=extra)}))
        wait(loaded_rig, "the application", series, 1)
        with answered(loaded_rig) as failed:
            loaded_rig.reload(daemon)
            # The serving Envoy is scraped, not the draining one.
            wait(loaded_rig, "the next epoch", "envoy_server_hot_restart_epoch", 1, "/")
            inode = path.stat().st_ino
            loaded_rig.reexec(daemon)
        assert failed == []
        assert path.stat().st_ino == inode
        wait(loaded_rig, "the application, by the next program", series, 1)
        wait(loaded_rig, "the next epoch, by the next program", "envoy_server_hot_restart_epoch", 1, "/")
        loaded_rig.kill(daemon)
        stack.enter_context(loaded_rig.up(environment=INTERVAL))
        wait(loaded_rig, "the application, by the next kumadp", series, 1)
        wait(loaded_rig, "the adopted Envoy", "envoy_server_hot_restart_epoch", 1, "/")


@contextlib.contextmanager
def answered(rig: Rig) -> Iterator[list[str]]:
    """Scrapes one after another, and those that failed: none may go without an answer."""
    failed: list[str] = []
    end = threading.Event()

    def scrape_until_over() -> None:
        while not end.wait(0.02):
            try:
                page = scrape(rig)
                if page.status != 200 or "kumadp_scrape_source_up" not in page.text:
                    failed.append(f"{page.status}: {page.text[-200:]}")
            except (OSError, http.client.HTTPException) as error:
                failed.append(repr(error))

    thread = threading.Thread(target=scrape_until_over)
    thread.start()
    try:
        yield failed
    finally:
        end.set()
        thread.join()


def prometheus_has(rig: Rig, port: int, labels: str = "") -> None:
    """A real Prometheus that scrapes the mesh's listener of Envoy has the application's, Envoy's and kumadp's."""
    need_prometheus()
    names = ("app_requests_total", "envoy_server_live", "kumadp_ready", "kumadp_relay_connected")
    with contextlib.closing(Prometheus(rig.folder, port)) as prometheus:
        poll(prometheus.is_up, what="a scrape through Envoy", deadline=SOON)
        for name in names:
            poll(lambda name=name: prometheus.query(f"{name}{{{labels}}} >= 1"), what=name, deadline=SOON)  # type: ignore[misc]


@pytest.mark.kuma_cp
def test_mesh_metric_of_a_real_control_plane(kuma_rig: Rig, exporter: Exporter) -> None:
    """The listener of the mesh gives Envoy's and the application's, for Kuma 2.8 to 3.0; labels of tags up to 2.14."""
    plane = kuma_rig.plane
    assert isinstance(plane, KumaControlPlane)
    port = free_port()
    default = {
        "applications": [{"name": "app", "path": "/metrics", "port": exporter.port}],
        "backends": [{"type": "Prometheus", "prometheus": {"port": port, "path": "/metrics"}}],
    }
    spec = {"targetRef": {"kind": "Mesh"}, "default": default}
    with kuma_rig.run() as daemon:
        kuma_rig.wait_ready(daemon)
        plane.put(
            "/meshes/default/meshmetrics/all", {"type": "MeshMetric", "mesh": "default", "name": "all", "spec": spec}
        )
        text = poll(
            lambda: response[1] if "app_requests_total" in (response := get(port, "/metrics"))[1] else "",
            what="the application's metrics at the mesh's listener",
            deadline=SOON,
        )
        sample = next(line for line in text.splitlines() if line.startswith("app_requests_total{"))
        of_tags = (f'dataplane="{NAME}"', 'service="backend"', 'kuma_io_service="backend"') if plane.by_tags else ()
        for label in ('mesh="default"', *of_tags):
            assert label in sample
        assert f'envoy_cluster_name="{plane.cluster("backend")}"' in text
        assert "envoy_server_live{" in text
        assert not check(text)
        prometheus_has(kuma_rig, port, of_tags[0] if of_tags else 'mesh="default"')
        plane.delete("/meshes/default/meshmetrics/all")
        poll(lambda: get(port, "/metrics")[0] == 0, what="the end of the listener", deadline=SOON)
        poll(lambda: not kuma_rig.status(daemon)["metrics"]["policy"], what="the end of the policy", deadline=SOON)
        assert "app_requests_total" not in scrape(kuma_rig, "/meshmetric").text


@pytest.mark.kuma_cp
def test_metrics_of_a_mesh_of_a_real_control_plane(kuma_rig: Rig, exporter: Exporter) -> None:
    """The way from before MeshMetric: a Mesh with a Prometheus backend that aggregates applications."""
    plane = kuma_rig.plane
    assert isinstance(plane, KumaControlPlane)
    if not plane.by_tags:
        pytest.skip("Kuma 3.0 ignores metrics of a Mesh")
    port = free_port()
    conf = {
        "port": port,
        "path": "/metrics",
        "skipMTLS": True,
        "aggregate": [{"name": "app", "port": exporter.port, "path": "/own"}],
    }
    backend = {"name": "prometheus", "type": "prometheus", "conf": conf}
    plane.put(
        "/meshes/default",
        {"type": "Mesh", "name": "default", "metrics": {"enabledBackend": "prometheus", "backends": [backend]}},
    )
    with kuma_rig.run() as daemon:
        kuma_rig.wait_ready(daemon)
        text = poll(
            lambda: response[1] if "app_requests_total" in (response := get(port, "/metrics"))[1] else "",
            what="the application's metrics at the mesh's listener",
            deadline=SOON,
        )
        assert 'app_requests_total{path="/own"} 1' in text
        assert f'envoy_cluster_name="backend"{MESH}' in text
        assert not check(text)
        prometheus_has(kuma_rig, port)
