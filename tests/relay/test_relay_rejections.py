"""What a real Envoy rejects costs only itself, in both protocols; and an upgrade under load costs nothing."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
import uvloop

from tests.support.daemon import get, get_at
from tests.support.http2 import Http2Server
from tests.support.load import load
from tests.support.poll import poll
from tests.support.relay_stage import NODE, RelayStage, stage
from tests.support.xds import resources
from tests.support.xds.journal import Kind
from tests.support.xds.resources import CLUSTER, LISTENER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.relay_stage import RelayedEnvoy

pytestmark = pytest.mark.process

WARMING = "cluster_manager.warming_clusters"
RING = {"lbPolicy": "RING_HASH", "ringHashLbConfig": {"minimumRingSize": 100, "maximumRingSize": 10}}


@pytest.fixture(params=["2.14", "3.0"])
def at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RelayStage]:
    with stage(tmp_path, uvloop.new_event_loop, version=request.param) as made:
        made.plane.faults.linger = 0.2
        made.plane.faults.nack_delay = 0.2
        made.suit_all()
        yield made


def serving(at: RelayStage) -> RelayedEnvoy:
    envoy = at.envoy(at.relay(drain_time=3.0), 0, "--drain-time-s", "3", "--drain-strategy", "immediate")
    envoy.wait_live()
    at.wait_traffic()
    return envoy


def add_bad_cluster(at: RelayStage, other: int) -> None:
    """Add three clusters with endpoints, the second one of which Envoy rejects late."""
    mesh = at.plane.mesh(NODE)
    for name, more in (("first", {}), ("second", RING), ("third", {})):
        mesh.trees[CLUSTER][name] = resources.eds_cluster(name, None, http2=True) | more
        mesh.services[name] = name
        mesh.endpoints[name] = [("127.0.0.1", other)]
    mesh.apply()


def test_one_of_three_clusters_is_rejected_and_the_others_are_used(at: RelayStage) -> None:
    envoy = serving(at)
    mesh = at.plane.mesh(NODE)
    with Http2Server("other") as other, Http2Server("later") as later:
        add_bad_cluster(at, other.port)
        poll(lambda: at.plane.rejected(NODE), what="a rejection")
        mesh.put(LISTENER, resources.http_listener("more", "127.0.0.1", at.ports.probes, "third", "OUTBOUND"))
        poll(lambda: get(at.ports.probes) == (200, "other"), what="a good cluster beside the bad one")
        # Later changes of endpoints, clusters and listeners arrive.
        mesh.endpoints["third"] = [("127.0.0.1", later.port)]
        mesh.apply()
        poll(lambda: get(at.ports.probes) == (200, "later"), what="other endpoints")
        mesh.put(CLUSTER, resources.eds_cluster("fourth", None, http2=True))
        mesh.services["fourth"] = "fourth"
        mesh.endpoints["fourth"] = [("127.0.0.1", other.port)]
        mesh.put(LISTENER, resources.http_listener("more", "127.0.0.1", at.ports.probes, "fourth", "OUTBOUND"))
        poll(lambda: get(at.ports.probes) == (200, "other"), what="another cluster")
        assert at.serves()
        poll(lambda: envoy.stats(WARMING)[WARMING] == 0, what="no cluster that warms")
        # The end of the bad one ends the matter.
        del mesh.services["second"]
        mesh.remove(CLUSTER, "second")
        newest = poll(lambda: at.plane.journal.responses(CLUSTER)[-1], what="clusters without it")
        poll(
            lambda: (
                at.plane.journal.requests(CLUSTER)[-1].kind is Kind.ACK
                and at.plane.journal.requests(CLUSTER)[-1].at > newest.at
            ),
            what="all clusters accepted",
        )
        assert envoy.stats(WARMING)[WARMING] == 0


@pytest.mark.parametrize("at", ["2.14"], indirect=True)
async def test_an_upgrade_and_back_under_load(at: RelayStage) -> None:
    """All names change: clusters that connections still use stay until these are drained."""
    await asyncio.to_thread(serving, at)
    for version in ("3.0", "2.14"):
        async with (
            load(at.ports.outbound, rate=40, connections=2, pause=0.02) as out,
            load(at.ports.inbound, rate=40, connections=2, pause=0.02) as into,
        ):
            await asyncio.to_thread(upgrade, at, version)
        assert (out.failures, into.failures) == ({}, {})
        assert out.answered > 50
        assert into.answered > 50
    assert at.plane.journal.requests(kind=Kind.NACK) == []


def upgrade(at: RelayStage, version: str) -> None:
    """Change the version, and wait until Envoy has the names of the other one alone."""
    seen = len(at.plane.journal.all_requests)
    at.plane.upgrade(version)

    def taken() -> bool:
        new = at.plane.journal.all_requests[seen:]
        return any(entry.type_url == LISTENER and entry.kind is Kind.ACK for entry in new)

    poll(lambda: at.plane.registered == [NODE] and taken(), what="listeners of the other version")
    poll(lambda: clusters(at) == set(at.plane.mesh(NODE).trees[CLUSTER]), what="its clusters alone")


def clusters(at: RelayStage) -> set[str]:
    """Clusters that Envoy has, but for those of its bootstrap."""
    envoy = at.envoys[-1]
    names = {
        status["name"] for status in json.loads(get_at(envoy.admin, "/clusters?format=json")[1])["cluster_statuses"]
    }
    return names - {cluster["name"] for cluster in at.bootstrap["staticResources"]["clusters"]}
