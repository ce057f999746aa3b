"""A control plane sends far more than this host's memory allows for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psutil
import pytest

from kumadp.daemon.control_client import query_status
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.daemon import Daemon, get, workload
from tests.support.poll import poll
from tests.support.rig import NAME, NODE, Rig
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import CLUSTER, static_cluster

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.attack]

MIB = 1 << 20
# An eighth of it is 8 MiB.
LIMIT = {"KUMA_DATAPLANE_RESOURCES_MAX_MEMORY_BYTES": str(64 * MIB)}


def relay_status(daemon: Daemon) -> dict[str, Any]:
    section: dict[str, Any] = query_status(control_socket_path(NAME, daemon.environment))["relay"]
    return section


def test_a_huge_message_is_rejected_with_one_line(tmp_path: Path) -> None:
    with XdsControlPlane() as plane, workload("backend-01") as app:
        rig = Rig(tmp_path, plane, app)
        mesh = plane.mesh(NODE)
        mesh.inbound(rig.ports.inbound, app.port)
        with rig.run(environment=LIMIT) as daemon:
            daemon.wait_ready()
            before = psutil.Process(daemon.pid).memory_info().rss
            huge = static_cluster("huge", "127.0.0.1", 1) | {
                "metadata": {"filterMetadata": {"x": {"y": "z" * 100 * MIB}}}
            }
            mesh.put(CLUSTER, huge)
            poll(lambda: relay_status(daemon)["last_rejection"], what="the refusal", deadline=60)
            rejection = relay_status(daemon)["last_rejection"]
            assert rejection["by_guard"]
            assert f"at most {8 * MIB}" in rejection["reason"]
            assert psutil.Process(daemon.pid).memory_info().rss - before < 32 * MIB
            lines = [line for line in daemon.output().splitlines() if "at most" in line]
            assert len(lines) == 1
            assert plane.rejected(NODE) == 1
            assert get(rig.ports.inbound) == (200, "backend-01")
            # What it takes again is served, over the same stream.
            streams = plane.streams(NODE)
            mesh.remove(CLUSTER, "huge")
            mesh.inbound(rig.ports.outbound, app.port)
            poll(lambda: get(rig.ports.outbound) == (200, "backend-01"), what="a listener that came after it")
            assert plane.streams(NODE) == streams


def test_memory_is_given_back_when_a_large_configuration_becomes_small(tmp_path: Path) -> None:
    with XdsControlPlane() as plane, workload("backend-01") as app:
        rig = Rig(tmp_path, plane, app)
        mesh = plane.mesh(NODE)
        mesh.inbound(rig.ports.inbound, app.port)
        # What is removed stays in Envoy, and here, until its connections have drained.
        with rig.run("--last-good=off", "--drain-time=1s") as daemon:
            daemon.wait_ready()
            before = psutil.Process(daemon.pid).memory_info().rss

            def grown() -> int:
                return psutil.Process(daemon.pid).memory_info().rss - before

            large = {"metadata": {"filterMetadata": {"x": {"y": "z" * (40 * MIB // 400)}}}}
            for number in range(400):
                mesh.trees[CLUSTER][f"c{number}"] = static_cluster(f"c{number}", "127.0.0.1", 1) | large
            mesh.apply()
            version = plane.version_of(NODE, CLUSTER)

            def accepted(accepted_version: str) -> bool:
                return any(view["accepted"] == accepted_version for view in relay_status(daemon)["types"])

            poll(lambda: accepted(version), what="the large one", deadline=60)
            poll(lambda: grown() < 60 * MIB, what="no more than it holds", deadline=20)
            for number in range(400):
                del mesh.trees[CLUSTER][f"c{number}"]
            mesh.apply()
            version = plane.version_of(NODE, CLUSTER)
            poll(lambda: accepted(version), what="the small one", deadline=60)
            poll(lambda: grown() < 15 * MIB, what="what there was", deadline=60)
