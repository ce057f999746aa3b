"""A small Delta client that is not Envoy: it sends what the test requests, and answers nothing by itself."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format
from grpclib import GRPCError
from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.exceptions import StreamTerminatedError

from tests.support.xds.plane import ADS, DELTA
from tests.support.xds.resources import CLUSTER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from grpclib.client import Stream

    from tests.support.control_planes import ControlPlane
    from tests.support.xds.resources import Tree

DEADLINE = 20.0
ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"


class DeltaClient:
    """An open stream; Node goes into the first request, or into each where ``always_node``."""

    def __init__(self, stream: Stream[Any, Any], node: Any, *, always_node: bool = False) -> None:
        self._stream, self._node, self._always_node = stream, node, always_node
        self._first = True

    async def request(
        self,
        type_url: str,
        *subscribe: str,
        unsubscribe: tuple[str, ...] = (),
        initial: Mapping[str, str] | None = None,
        nonce: str = "",
        error: str = "",
    ) -> None:
        """Send a request."""
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url,
            resource_names_subscribe=subscribe,
            resource_names_unsubscribe=unsubscribe,
            initial_resource_versions=initial or {},
            response_nonce=nonce,
        )
        if error:
            request.error_detail.code, request.error_detail.message = 13, error
        if self._first or self._always_node:
            request.node.CopyFrom(self._node)
        self._first = False
        await self._stream.send_message(request)

    async def response(self, type_url: str = "", *, timeout: float = DEADLINE) -> Any:
        """Return the next response, which is of this type if one is given; raises GRPCError, TimeoutError, EOFError."""
        message = None
        # A server that ends a stream resets it after its status.
        with contextlib.suppress(StreamTerminatedError):
            message = await asyncio.wait_for(self._stream.recv_message(), timeout)
        if message is None:
            self._stream._maybe_raise()
            raise EOFError("the stream ended")
        assert type_url in {"", message.type_url}
        return message

    async def ack(self, response: Any, *, error: str = "") -> None:
        """Answer a response."""
        await self.request(response.type_url, nonce=response.nonce, error=error)

    async def exchange(self, type_url: str, *subscribe: str, **options: Any) -> Any:
        """Send a request, return the response to it, and answer that."""
        await self.request(type_url, *subscribe, **options)
        response = await self.response(type_url)
        await self.ack(response)
        return response

    async def settle(self) -> None:
        """Assert that nothing is on its way to us, and that all requests were read.

        Routes are none, and a request for all of them is answered at once.
        """
        await self.request(ROUTES)
        response = await self.response()
        assert response.type_url == ROUTES, f"there came {response}"

    async def finish(self) -> None:
        """Close our side."""
        await self._stream.end()

    async def break_off(self) -> None:
        """End it as a client that dies does."""
        await self._stream.cancel()


def node_of(tree: Tree) -> Any:
    """The Node of a bootstrap."""
    return json_format.ParseDict(tree, base_pb2.Node(), ignore_unknown_fields=True)


def versions_of(response: Any) -> dict[str, str]:
    """Versions by name of a response."""
    return {resource.name: resource.version for resource in response.resources}


@contextlib.asynccontextmanager
async def open_channel(plane: ControlPlane, port: int) -> AsyncIterator[Channel]:
    """A connection to a control plane."""
    context = ssl.create_default_context(cadata=plane.ca)
    context.set_alpn_protocols(["h2"])
    channel = Channel("localhost", port, ssl=context)
    try:
        yield channel
    finally:
        # A TLS goodbye takes longer than the test's loop lives.
        if channel._protocol is not None and hasattr(channel._protocol.connection, "_transport"):
            channel._protocol.connection._transport.abort()
        await asyncio.sleep(0)
        channel.close()


@contextlib.asynccontextmanager
async def open_delta(
    channel: Channel, node: Any, token: str = "token", *, always_node: bool = False
) -> AsyncIterator[DeltaClient]:
    """A stream of a connection, which is cancelled in the end unless it has ended."""
    request, response = discovery_pb2.DeltaDiscoveryRequest, discovery_pb2.DeltaDiscoveryResponse
    stream: Any = channel.request(
        DELTA, Cardinality.STREAM_STREAM, request, response, metadata={"authorization": token}
    )
    await stream.__aenter__()
    client = DeltaClient(stream, node, always_node=always_node)
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):
            await stream.cancel()


def open_sotw(channel: Channel, token: str = "token") -> Any:
    """A stream of the other protocol, as grpclib makes it."""
    request, response = discovery_pb2.DiscoveryRequest, discovery_pb2.DiscoveryResponse
    return channel.request(ADS, Cardinality.STREAM_STREAM, request, response, metadata={"authorization": token})


async def sotw_refusal(channel: Channel, node: Any, token: str = "token") -> GRPCError | None:
    """What ends a new stream of the other protocol at its first request; None when that is answered."""
    try:
        async with open_sotw(channel, token) as stream:
            await stream.send_message(discovery_pb2.DiscoveryRequest(type_url=CLUSTER, node=node))
            await stream.recv_message()
            await stream.cancel()
    except GRPCError as error:
        return error
    return None
