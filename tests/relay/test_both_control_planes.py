"""The test control plane beside a real ``kuma-cp``: what tests rely on is true of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.control_planes import KINDS, ControlPlane, open_plane
from tests.support.daemon import Ports, get, workload
from tests.support.http2 import Http2Server
from tests.support.kuma_control_plane import KumaControlPlane
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll
from tests.support.xds.envoy import direct_envoy
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

NODE = "default.backend-01"


@pytest.fixture(params=KINDS)
def plane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ControlPlane]:
    with open_plane(request.param, tmp_path) as plane:
        if isinstance(plane, KumaControlPlane) and not plane.by_tags:
            pytest.skip("an Envoy alone speaks state of the world, which Kuma 3.0 does not: see test_both_delta.py")
        yield plane


def test_a_mesh_its_changes_and_a_rejection(plane: ControlPlane, tmp_path: Path) -> None:
    ports = Ports.take()
    with workload("backend") as app, Http2Server("other") as other:
        described = dataplane("backend-01", "backend", ports, app.port, probes=False)
        with direct_envoy(tmp_path, plane, described, ports):
            poll(lambda: get(ports.outbound) == (200, "backend"), what="traffic", deadline=40)
            assert get(ports.inbound) == (200, "backend")
            assert plane.registered == [NODE]
            stream = poll(lambda: plane.stream(NODE), what="the stream")

            direct = dataplane("backend-02", "backend", Ports.take(), other.port, probes=False)
            direct["networking"] |= {"outbound": [], "inbound": [_without_proxy(other.port)]}
            plane.put_dataplane(direct)
            poll(lambda: get(ports.outbound) == (200, "other"), what="the other endpoint", deadline=40)
            plane.delete_dataplane("default", "backend-02")
            poll(
                lambda: {get(ports.outbound) for _ in range(6)} == {(200, "backend")}, what="one endpoint", deadline=40
            )

            assert plane.rejected(NODE) == 0
            plane.break_clusters("backend")
            poll(lambda: plane.rejected(NODE), what="a rejection", deadline=40)
            plane.mend_clusters("backend")
            assert get(ports.outbound) == (200, "backend")
            assert plane.stream(NODE) == stream


def _without_proxy(port: int) -> dict[str, object]:
    return {"port": port, "tags": {"kuma.io/service": "backend", "kuma.io/protocol": "http"}}


def test_mutual_tls_and_a_control_plane_that_dies(plane: ControlPlane, tmp_path: Path) -> None:
    ports = Ports.take()
    plane.use_mtls()
    with workload("backend") as app:
        described = dataplane("backend-01", "backend", ports, app.port, probes=False)
        with direct_envoy(tmp_path, plane, described, ports):
            poll(lambda: get(ports.outbound) == (200, "backend"), what="traffic", deadline=40)
            assert get(ports.inbound)[0] == 0
            plane.kill()
            assert get(ports.outbound) == (200, "backend")
        plane.start()
        assert plane.registered == []
        with direct_envoy(tmp_path, plane, described, ports):
            poll(lambda: get(ports.outbound) == (200, "backend"), what="traffic", deadline=40)
            assert plane.registered == [NODE]


def test_a_restarted_envoy_waits_until_its_old_stream_is_freed(plane: ControlPlane, tmp_path: Path) -> None:
    ports = Ports.take()
    with workload("backend") as app:
        described = dataplane("backend-01", "backend", ports, app.port, probes=False)
        with direct_envoy(tmp_path, plane, described, ports) as envoy:
            poll(lambda: get(ports.outbound) == (200, "backend"), what="traffic", deadline=40)
            stream = poll(lambda: plane.stream(NODE), what="the stream")
            if isinstance(plane, XdsControlPlane):
                plane.faults.linger = 1.0
            envoy.kill()
            envoy.start()
            refusal = "there is already an active stream from this node"
            poll(lambda: refusal in envoy.log.read_text(), what="a refused stream")
            poll(lambda: get(ports.outbound) == (200, "backend"), what="traffic again", deadline=60)
            assert poll(lambda: plane.stream(NODE), what="another stream") != stream
