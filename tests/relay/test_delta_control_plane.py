"""The Delta side of the test control plane, with a client that is not Envoy: habits of Kuma, where versions differ."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from envoy.service.discovery.v3 import discovery_pb2
from grpclib import GRPCError, Status

from tests.support.poll import poll
from tests.support.xds import delta_client
from tests.support.xds.delta import version_of
from tests.support.xds.delta_client import ROUTES, open_delta, open_sotw, sotw_refusal, versions_of
from tests.support.xds.journal import Kind, What
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER, SECRET

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from grpclib.client import Channel

    from tests.support.xds.mesh import Mesh

NODE = "default.web-1"
DATAPLANE = {"networking": {"address": "127.0.0.1", "inbound": []}}
NODE_TREE = {"id": NODE, "metadata": {"dataplane.resource": json.dumps(DATAPLANE)}}


@pytest.fixture(params=["3.0"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def plane(version: str) -> Iterator[XdsControlPlane]:
    with XdsControlPlane(version=version) as plane:
        plane.mesh(NODE).outbound(1, "one", ("127.0.0.1", 1))
        plane.mesh(NODE).outbound(2, "two", ("127.0.0.1", 2))
        yield plane


@pytest.fixture
async def channel(plane: XdsControlPlane) -> AsyncIterator[Channel]:
    async with delta_client.open_channel(plane, plane.port) as channel:
        yield channel


async def change(plane: XdsControlPlane, method: str, *arguments: Any) -> None:
    """Change the node's mesh."""
    await asyncio.to_thread(getattr(plane.mesh(NODE), method), *arguments)


def node() -> Any:
    return delta_client.node_of(NODE_TREE)


def encoded(plane: XdsControlPlane, kind: str) -> dict[str, bytes]:
    return plane.mesh(NODE).encoded({})[kind]


on_each = pytest.mark.parametrize("version", ["2.13", "2.14", "3.0"], indirect=True)


@on_each
async def test_each_resource_has_the_digest_of_its_bytes_as_its_version(
    plane: XdsControlPlane, channel: Channel
) -> None:
    async with open_delta(channel, node(), always_node=True) as client:
        clusters = await client.exchange(CLUSTER)
        endpoints = await client.exchange(ENDPOINTS, "one", "two")
        listeners = await client.exchange(LISTENER, "*")
        assert [clusters.nonce, endpoints.nonce, listeners.nonce] == ["1", "2", "3"]
        for response in (clusters, endpoints, listeners):
            served = encoded(plane, response.type_url)
            assert versions_of(response) == {name: version_of(resource) for name, resource in served.items()}
            assert list(response.removed_resources) == []


async def test_changes_wait_until_the_next_request_of_the_type(plane: XdsControlPlane, channel: Channel) -> None:
    async with open_delta(channel, node()) as client:
        await client.request(CLUSTER)
        first = await client.response(CLUSTER)
        await client.exchange(LISTENER)
        await client.settle()
        await change(plane, "outbound", 3, "three", ("127.0.0.1", 3))
        await change(plane, "outbound", 4, "four", ("127.0.0.1", 4))
        # Listeners are open again, clusters are not.
        changes = await client.response(LISTENER)
        assert set(versions_of(changes)) <= {"outbound:127.0.0.1:3", "outbound:127.0.0.1:4"}
        await client.ack(first)
        summed_up = await client.response(CLUSTER)
        assert set(versions_of(summed_up)) == {"three", "four"}


async def test_any_nonce_opens_a_type_again(plane: XdsControlPlane, channel: Channel) -> None:
    async with open_delta(channel, node()) as client:
        await client.request(CLUSTER)
        await client.response(CLUSTER)
        await client.request(CLUSTER, nonce="7")
        await client.settle()
        await change(plane, "outbound", 3, "three", ("127.0.0.1", 3))
        assert set(versions_of(await client.response(CLUSTER))) == {"three"}
        assert [entry.kind for entry in plane.journal.requests(CLUSTER)] == [Kind.FIRST, Kind.STALE]


@on_each
async def test_a_change_of_clusters_sends_endpoints_again(
    plane: XdsControlPlane, channel: Channel, version: str
) -> None:
    async with open_delta(channel, node(), always_node=True) as client:
        await client.exchange(CLUSTER)
        sent = await client.exchange(ENDPOINTS, "one", "two")
        await client.settle()
        await change(plane, "break_cluster", "one")
        assert set(versions_of(await client.response(CLUSTER))) == {"one"}
        again = versions_of(await client.response(ENDPOINTS))
        assert set(again) == ({"one", "two"} if version == "3.0" else {"one"})
        assert again.items() <= versions_of(sent).items()


async def test_removals_come_in_the_order_clusters_endpoints_listeners(
    plane: XdsControlPlane, channel: Channel
) -> None:
    async with open_delta(channel, node()) as client:
        for kind, names in ((LISTENER, ()), (ENDPOINTS, ("one", "two")), (CLUSTER, ())):
            await client.exchange(kind, *names)

        def remove() -> None:
            mesh: Mesh = plane.mesh(NODE)
            del mesh.trees[CLUSTER]["two"]
            del mesh.services["two"]
            mesh.remove(LISTENER, "outbound:127.0.0.1:2")

        await client.settle()
        await asyncio.to_thread(remove)
        responses = [await client.response() for _ in range(3)]
        assert [response.type_url for response in responses] == [CLUSTER, ENDPOINTS, LISTENER]
        assert [list(r.removed_resources) for r in responses] == [["two"], ["two"], ["outbound:127.0.0.1:2"]]
        assert [list(versions_of(r)) for r in responses] == [[], ["one"], []]


async def test_names_that_are_not_there_are_answered_once_they_are(plane: XdsControlPlane, channel: Channel) -> None:
    async with open_delta(channel, node()) as client:
        await client.request(ENDPOINTS, "three")
        await client.settle()
        await change(plane, "outbound", 3, "three", ("127.0.0.1", 3))
        assert set(versions_of(await client.response(ENDPOINTS))) == {"three"}


async def test_subscribing_again_sends_only_what_was_given_up_in_between(
    plane: XdsControlPlane, channel: Channel
) -> None:
    async with open_delta(channel, node()) as client:
        await client.exchange(ENDPOINTS, "one", "two")
        await client.request(ENDPOINTS, "one")
        await client.settle()
        await client.request(ENDPOINTS, unsubscribe=("one",))
        await client.request(ENDPOINTS, "one")
        assert set(versions_of(await client.response(ENDPOINTS))) == {"one"}


async def test_an_empty_nonce_is_answered_at_once_where_all_is_subscribed_to(
    plane: XdsControlPlane, channel: Channel
) -> None:
    async with open_delta(channel, node()) as client:
        await client.exchange(CLUSTER)
        await client.request(CLUSTER)
        poked = await client.response(CLUSTER)
        assert (versions_of(poked), list(poked.removed_resources)) == ({}, [])
        await client.request(ROUTES)
        assert versions_of(await client.response(ROUTES)) == {}


@on_each
async def test_a_new_stream_gets_the_difference_to_the_versions_it_names(
    plane: XdsControlPlane, channel: Channel, version: str
) -> None:
    kinds = {CLUSTER: (), ENDPOINTS: ("one", "two"), LISTENER: ()}
    plane.faults.linger = 0.0
    plane.faults.registering = 0.3
    known = {kind: {n: version_of(r) for n, r in encoded(plane, kind).items()} for kind in kinds}
    known[LISTENER]["gone"] = known[CLUSTER].pop("two")
    async with open_delta(channel, node(), always_node=True) as client:
        for kind, names in kinds.items():
            await client.request(kind, *names, initial=known[kind])
        clusters = await client.response(CLUSTER)
        assert (set(versions_of(clusters)), list(clusters.removed_resources)) == ({"two"}, [])
        assert set(versions_of(await client.response(ENDPOINTS))) == ({"one", "two"} if version == "3.0" else {"two"})
        listeners = await client.response(LISTENER)
        assert (versions_of(listeners), list(listeners.removed_resources)) == ({}, ["gone"])


@on_each
async def test_endpoints_that_are_known_are_sent_again_by_one_version_only(
    plane: XdsControlPlane, channel: Channel, version: str
) -> None:
    known = {name: version_of(resource) for name, resource in encoded(plane, ENDPOINTS).items()}
    async with open_delta(channel, node(), always_node=True) as client:
        await client.request(ENDPOINTS, "one", "two", initial=known)
        if version == "3.0":
            assert versions_of(await client.response(ENDPOINTS)) == known
        await client.settle()


async def test_a_rejected_response_is_not_repeated_and_delays_the_next_of_its_type(
    plane: XdsControlPlane, channel: Channel
) -> None:
    plane.faults.nack_delay = 0.3
    async with open_delta(channel, node()) as client:
        await client.exchange(LISTENER)
        await client.request(CLUSTER)
        await client.ack(await client.response(CLUSTER), error="ring hash: minimum_ring_size")
        await client.request(ROUTES)
        await client.response(ROUTES)
        rejected = plane.journal.requests(CLUSTER, Kind.NACK)[0]
        assert (rejected.error, plane.rejected(NODE)) == ("ring hash: minimum_ring_size", 1)
        await client.settle()
        await change(plane, "outbound", 3, "three", ("127.0.0.1", 3))
        assert set(versions_of(await client.response(CLUSTER))) == {"three"}
        await client.response(LISTENER)
        clusters, listeners = plane.journal.responses(CLUSTER)[-1], plane.journal.responses(LISTENER)[-1]
        assert rejected.at + 0.3 <= clusters.at <= listeners.at


async def test_one_stream_a_node_whichever_its_protocol(plane: XdsControlPlane, channel: Channel) -> None:
    plane.version = "2.14"
    plane.faults.linger = 0.2
    refusal = "there is already an active stream from this node, try again later"
    async with open_delta(channel, node()) as client:
        await client.exchange(CLUSTER)
        refused = await sotw_refusal(channel, node())
        assert refused is not None
        assert refused.message == refusal
        async with open_delta(channel, node()) as second:
            await second.request(CLUSTER)
            with pytest.raises(GRPCError, match=refusal):
                await second.response()
        await client.break_off()
    assert plane.registered == [NODE]
    await asyncio.to_thread(poll, lambda: plane.journal.events(What.FREED, node=NODE), what="the node freed")
    async with open_sotw(channel) as other:
        await other.send_message(discovery_pb2.DiscoveryRequest(type_url=CLUSTER, node=node()))
        assert len((await other.recv_message()).resources) == 2
        async with open_delta(channel, node()) as client:
            await client.request(CLUSTER)
            with pytest.raises(GRPCError, match=refusal):
                await client.response()
        await other.cancel()


@pytest.mark.parametrize("version", ["2.13"], indirect=True)
async def test_a_request_without_node_ends_the_stream_late(plane: XdsControlPlane, channel: Channel) -> None:
    plane.faults.linger = 0.3
    async with open_delta(channel, node()) as client:
        await client.request(CLUSTER)
        await client.response(CLUSTER)
        await client.request(LISTENER)
        with pytest.raises(GRPCError, match=f"authenticated for ID {NODE}. Received request is for node with ID ."):
            await client.response()
    (cause,) = plane.journal.events(What.ENDED)
    (end,) = plane.journal.events(What.CLOSED)
    assert cause.at + 0.3 <= end.at


@pytest.mark.parametrize("version", ["2.8"], indirect=True)
async def test_a_version_without_delta_is_silent(plane: XdsControlPlane, channel: Channel) -> None:
    async with open_delta(channel, node(), "any token") as client:
        await client.request(CLUSTER)
        await asyncio.to_thread(poll, lambda: plane.journal.requests(CLUSTER), what="a request")
        assert (plane.streams(), plane.registered) == ([], [])
        await client.finish()
        with pytest.raises(EOFError):
            await client.response()
    assert [event.detail for event in plane.journal.events(What.UNSERVED)] == ["DeltaAggregatedResources"]
    assert plane.journal.responses() == []


async def test_state_of_the_world_is_silent_until_delta_serves_the_node(
    plane: XdsControlPlane, channel: Channel
) -> None:
    async with open_sotw(channel) as old:
        await old.send_message(discovery_pb2.DiscoveryRequest(type_url=CLUSTER, node=node()))
        await asyncio.to_thread(poll, lambda: plane.journal.requests(CLUSTER), what="a request")
        assert plane.journal.responses() == []
        async with open_delta(channel, node()) as client:
            await client.exchange(CLUSTER)
            assert len((await old.recv_message()).resources) == 2
            await client.settle()
        await old.end()
        assert await old.recv_message() is None


@pytest.mark.parametrize("version", ["3.0 unimplemented"], indirect=True)
async def test_state_of_the_world_may_be_unimplemented(plane: XdsControlPlane, channel: Channel) -> None:
    refused = await sotw_refusal(channel, node())
    assert refused is not None
    assert refused.status is Status.UNIMPLEMENTED
    async with open_delta(channel, node()) as client:
        await client.exchange(CLUSTER)


async def test_a_request_of_more_than_4_mib_is_refused(plane: XdsControlPlane, channel: Channel) -> None:
    plane.faults.linger = 0.0
    async with open_delta(channel, node()) as client:
        await client.exchange(CLUSTER)
        await client.request(LISTENER, initial={f"listener {n:050}": "0" * 64 for n in range(40_000)})
        with pytest.raises(GRPCError, match="received message larger than max") as refused:
            await client.response()
        assert refused.value.status is Status.RESOURCE_EXHAUSTED


async def test_an_upgrade_keeps_the_port_and_forgets_the_node(plane: XdsControlPlane) -> None:
    plane.version = "2.14"
    async with delta_client.open_channel(plane, plane.port) as channel, open_delta(channel, node()) as client:
        sent = await client.exchange(CLUSTER)
        await asyncio.to_thread(plane.upgrade, "3.0")
        with pytest.raises((EOFError, ConnectionError, GRPCError)):
            await client.response()
    assert (plane.registered, plane.version) == ([], "3.0")
    async with delta_client.open_channel(plane, plane.port) as channel, open_delta(channel, node()) as client:
        await client.request(CLUSTER, initial=versions_of(sent))
        # The same bytes have the same version after a restart.
        assert versions_of(await client.response(CLUSTER)) == {}
    assert plane.registered == [NODE]


async def test_secrets_change_one_at_a_time(plane: XdsControlPlane, channel: Channel) -> None:
    await change(plane, "use_mtls", trustme.CA(), "web.mesh")
    async with open_delta(channel, node()) as client:
        both = await client.exchange(SECRET, "identity_cert:secret:default", "mesh_ca:secret:default")
        assert len(both.resources) == 2
        await client.settle()
        await change(plane, "rotate", "web.mesh")
        assert set(versions_of(await client.response(SECRET))) == {"identity_cert:secret:default"}
