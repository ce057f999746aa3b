"""The test control plane with a client that is not Envoy: it follows Kuma's rules, with the same texts."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import TYPE_CHECKING, Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from grpclib import GRPCError, Status
from grpclib.client import Channel
from grpclib.const import Cardinality

from tests.support.poll import poll, poll_async
from tests.support.xds.journal import What
from tests.support.xds.plane import ADS, XdsControlPlane
from tests.support.xds.resources import CLUSTER, ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

NODE = "default.web-1"
OTHER = "default.web-2"
DATAPLANE = json.dumps({"networking": {"address": "127.0.0.1", "inbound": []}})


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as plane:
        plane.mesh(NODE).outbound(1, "one", ("127.0.0.1", 1))
        plane.mesh(NODE).outbound(2, "two", ("127.0.0.1", 2))
        yield plane


@pytest.fixture
async def channel(plane: XdsControlPlane) -> AsyncIterator[Channel]:
    context = ssl.create_default_context(cadata=plane.ca)
    context.set_alpn_protocols(["h2"])
    channel = Channel("localhost", plane.port, ssl=context)
    yield channel
    # A TLS goodbye takes longer than the test's loop lives.
    if channel._protocol is not None:
        channel._protocol.connection._transport.abort()
    await asyncio.sleep(0)
    channel.close()


def open_stream(channel: Channel) -> Any:
    return channel.request(
        ADS,
        Cardinality.STREAM_STREAM,
        discovery_pb2.DiscoveryRequest,
        discovery_pb2.DiscoveryResponse,
        metadata={"authorization": "token"},
    )


def query(type_url: str, *names: str, node: str = "", nonce: str = "", version: str = "", file: bool = True) -> Any:
    request = discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names, response_nonce=nonce)
    request.version_info = version
    if node:
        request.node.id = node
        request.node.metadata["other"] = "value"
        if file:
            request.node.metadata["dataplane.resource"] = DATAPLANE
    return request


async def refusal(channel: Channel) -> GRPCError:
    """What ends a new stream of the node."""
    try:
        async with open_stream(channel) as stream:
            await stream.send_message(query(CLUSTER, node=NODE))
            await stream.recv_message()
    except GRPCError as error:
        return error
    raise AssertionError("the stream was not refused")


async def test_a_second_stream_of_a_node_is_refused_until_the_first_is_freed(
    plane: XdsControlPlane, channel: Channel
) -> None:
    plane.faults.linger = 0.5
    async with open_stream(channel) as first:
        await first.send_message(query(CLUSTER, node=NODE))
        assert (await first.recv_message()).nonce == "1"
        refused = await refusal(channel)
        assert refused.status is Status.UNKNOWN
        assert refused.message == "there is already an active stream from this node, try again later"
        async with open_stream(channel) as other:
            await other.send_message(query(CLUSTER, node=OTHER))
            await asyncio.to_thread(poll, lambda: plane.registered == [NODE, OTHER], what="both nodes in the mesh")
            await other.cancel()
        await asyncio.to_thread(poll, lambda: plane.journal.events(What.FREED, node=OTHER), what="the other freed")
        assert plane.registered == [NODE]
        await first.cancel()
    await asyncio.to_thread(poll, lambda: plane.journal.events(What.FREED, node=NODE), what="the node freed")
    assert plane.registered == []
    for node in (NODE, OTHER):
        closed, freed = (plane.journal.events(what, node=node)[-1] for what in (What.CLOSED, What.FREED))
        assert freed.at - closed.at > 0.4
    async with open_stream(channel) as third:
        await third.send_message(query(CLUSTER, node=NODE))
        assert (await third.recv_message()).nonce == "1"
        await third.cancel()


async def test_without_a_dataplane_file_the_node_is_free_at_once(plane: XdsControlPlane, channel: Channel) -> None:
    plane.faults.linger = 600
    for _turn in range(2):
        async with open_stream(channel) as stream:
            await stream.send_message(query(CLUSTER, node=NODE, file=False))
            assert await stream.recv_message() is not None
            await stream.end()

        async def closed() -> bool:
            return not plane.streams()

        await poll_async(closed, what="the end of the stream")
    assert plane.registered == []
    assert plane.journal.events(What.REFUSED) == []


async def test_a_request_that_names_fewer_resources_than_there_are_is_not_answered(
    plane: XdsControlPlane, channel: Channel
) -> None:
    async with open_stream(channel) as stream:
        await stream.send_message(query(ENDPOINTS, "one", node=NODE))
        await asyncio.to_thread(poll, lambda: plane.journal.events(What.UNANSWERED), what="a request not answered")
        assert plane.journal.responses() == []
        await stream.send_message(query(ENDPOINTS, "one", "two"))
        answer = await stream.recv_message()
        assert len(answer.resources) == 2
        await stream.cancel()


async def test_a_stale_nonce_is_ignored_and_an_old_version_answered(plane: XdsControlPlane, channel: Channel) -> None:
    async with open_stream(channel) as stream:
        await stream.send_message(query(CLUSTER, node=NODE))
        first = await stream.recv_message()
        await stream.send_message(query(CLUSTER, nonce="other", version=first.version_info))
        await stream.send_message(query(CLUSTER, nonce=first.nonce, version=first.version_info))
        await asyncio.to_thread(plane.mesh(NODE).outbound, 3, "three", ("127.0.0.1", 3))
        second = await stream.recv_message()
        assert (second.nonce, len(second.resources)) == ("2", 3)
        assert second.version_info != first.version_info
        await stream.cancel()


async def test_a_new_stream_is_answered_whatever_version_it_has(plane: XdsControlPlane, channel: Channel) -> None:
    async with open_stream(channel) as stream:
        await stream.send_message(query(CLUSTER, node=NODE, version=plane.version_of(NODE, CLUSTER)))
        assert (await stream.recv_message()).nonce == "1"
        await stream.cancel()


async def test_a_refused_token_has_a_reason(plane: XdsControlPlane, channel: Channel) -> None:
    plane.faults.refuse_token = lambda token: f"{token} is not signed"
    refused = await refusal(channel)
    assert (refused.status, refused.message) == (Status.UNKNOWN, "authentication failed: token is not signed")


async def test_resources_come_in_another_order_and_slowly_on_request(plane: XdsControlPlane, channel: Channel) -> None:
    plane.faults.slow = plane.faults.registering = 0.01
    orders: set[tuple[bytes, ...]] = set()
    async with open_stream(channel) as stream:
        await stream.send_message(query(CLUSTER, node=NODE))
        while len(orders) < 2:
            answer = await stream.recv_message()
            orders.add(tuple(resource.value for resource in answer.resources))
            await stream.send_message(query(CLUSTER, nonce=answer.nonce, version=answer.version_info))
            await asyncio.to_thread(plane.renew_versions, NODE)
        await stream.cancel()
    first_request = plane.journal.requests(CLUSTER)[0]
    registered, sent = plane.journal.events(What.REGISTERED)[0], plane.journal.responses(CLUSTER)[0]
    admitted = plane.journal.events(What.ADMITTED)[0]
    assert admitted.at + 0.01 <= registered.at <= first_request.at <= sent.at - 0.01
