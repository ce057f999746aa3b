"""The streams of the test control plane: ADS, state of the world, as Kuma's go-control-plane speaks it; and HDS.

ADS by Delta is in `tests.support.xds.delta`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from envoy.config.core.v3 import health_check_pb2
from envoy.service.discovery.v3 import discovery_pb2
from envoy.service.health.v3 import hds_pb2
from grpclib import GRPCError, Status
from grpclib.exceptions import StreamTerminatedError

from tests.support.xds.faults import Garbage
from tests.support.xds.journal import Event, Kind, Report, Request, Response, What
from tests.support.xds.profiles import Profile, Service
from tests.support.xds.resources import TYPES

if TYPE_CHECKING:
    from google.protobuf import struct_pb2
    from grpclib.server import Stream

    from tests.support.xds.faults import Faults
    from tests.support.xds.journal import Journal
    from tests.support.xds.nodes import Node, Registry

ACTIVE_STREAM = "there is already an active stream from this node, try again later"
GARBAGE = b"\xff" * 24
# What gRPC for Go takes unless set otherwise, bytes.
LARGEST_REQUEST = 4 * 1024 * 1024


@dataclass
class Shared:
    """What the streams of one control plane share."""

    faults: Faults
    journal: Journal
    registry: Registry
    profile: Profile
    streams: set[OneStream] = field(default_factory=set)
    opened: int = 0


class OneStream:
    """An open stream; `run` serves it to its end, which either side or a test makes."""

    opens, closes = What.OPENED, What.CLOSED

    def __init__(self, shared: Shared, stream: Stream[bytes, bytes]) -> None:
        shared.opened += 1
        self.number = shared.opened
        self.node = ""
        self.stream = stream
        self.shared = shared
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._ending: asyncio.Future[tuple[Status, str] | None] = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        """Look again at what is to be sent."""
        self._inbox.put_nowait(None)

    def end(self, ending: tuple[Status, str] | None) -> None:
        """End with a status and message, or without: RST_STREAM."""
        if not self._ending.done():
            self._ending.set_result(ending)

    async def run(self) -> None:
        self.shared.streams.add(self)
        self.record(self.opens)
        tasks = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._work())]
        try:
            waiting: list[asyncio.Future[Any]] = [*tasks, self._ending]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self._ending.done():
                ending = self._ending.result()
                if ending is not None:
                    raise GRPCError(*ending)
                await self.stream.cancel()
            elif tasks[1].done():
                tasks[1].result()
        finally:
            for task in tasks:
                task.cancel()
            self.shared.streams.discard(self)
            self.record(self.closes)
            self.closed()

    async def _read(self) -> None:
        with contextlib.suppress(StreamTerminatedError):
            while (data := await self.stream.recv_message()) is not None:
                self._inbox.put_nowait(data)

    async def _work(self) -> None:
        while True:
            data = await self._inbox.get()
            if data is None:
                await self.review()
            else:
                await self.received(data)

    async def received(self, data: bytes) -> None:
        raise NotImplementedError

    async def review(self) -> None:
        raise NotImplementedError

    def closed(self) -> None:
        """After the end."""

    def record(self, what: What, detail: str = "") -> None:
        self.shared.journal.add(Event(what, self.number, self.node, detail))

    def check_token(self) -> None:
        """Refuse the stream when its token is refused."""
        metadata = self.stream.metadata
        token = str(metadata.get("authorization", "")) if metadata else ""
        if reason := self.shared.faults.refuse_token(token):
            self.record(What.UNAUTHENTICATED, reason)
            self._refuse(f"authentication failed: {reason}")

    def _refuse(self, reason: str) -> NoReturn:
        # Kuma's callbacks return plain errors, which Go's gRPC sends as UNKNOWN.
        raise GRPCError(Status.UNKNOWN, reason)

    async def send(self, data: bytes) -> None:
        if self.shared.faults.garbage is Garbage.BYTES:
            self.stream._stream._transport.write(GARBAGE)
            return
        await self.stream.send_message(GARBAGE if self.shared.faults.garbage is Garbage.MESSAGE else data)


class DiscoveryStream(OneStream):
    """An ADS stream of either protocol: how it becomes the one of its node, and how it ends."""

    method = ""

    def __init__(self, shared: Shared, stream: Stream[bytes, bytes]) -> None:
        super().__init__(shared, stream)
        # A stream that is open when the version changes stays what it is until it ends.
        self.profile = shared.profile
        self._left = False

    @property
    def service(self) -> Service:
        """Whether this version answers."""
        raise NotImplementedError

    @property
    def state(self) -> Node:
        return self.shared.registry.node(self.node)

    async def received(self, data: bytes) -> None:
        if len(data) > LARGEST_REQUEST:
            text = f"grpc: received message larger than max ({len(data)} vs. {LARGEST_REQUEST})"
            await self.refuse(text, Status.RESOURCE_EXHAUSTED)
        await self.requested(data)

    @property
    def has_snapshot(self) -> bool:
        """Whether there is something to answer with.

        In a version that does not serve the protocol only a stream of the other one makes a snapshot of its node, and
        then both are answered.
        """
        return self.service is Service.ANSWERED or self.state.holder is not None

    async def requested(self, data: bytes) -> None:
        """A request that gRPC takes."""
        raise NotImplementedError

    async def run(self) -> None:
        if self.service is Service.UNIMPLEMENTED:
            self.record(What.UNIMPLEMENTED, self.method)
            raise GRPCError(Status.UNIMPLEMENTED, f"method {self.method} not implemented")
        await super().run()

    def admit(self, node: Any) -> None:
        """Make this the stream of its node; refuses where it cannot be. One that is not served is never checked."""
        if self.service is Service.SILENT:
            self.node = node.id
            self.record(What.UNSERVED, self.method)
            return
        self.check_token()
        if not self.shared.registry.admit(self.number, node.id, _dataplane(node.metadata)):
            self._refuse(ACTIVE_STREAM)
        self.node = node.id

    def note_request(self, request: Any, data: bytes, kind: Kind, **fields: Any) -> None:
        """Add a request of either form to the journal; ``fields`` are those that differ."""
        self.shared.journal.add(
            Request(
                stream=self.number,
                node=self.node,
                kind=kind,
                type_url=request.type_url,
                nonce=request.response_nonce,
                error=request.error_detail.message,
                has_node=request.HasField("node"),
                raw=data,
                **fields,
            )
        )

    async def refuse(self, reason: str, status: Status = Status.UNKNOWN) -> NoReturn:
        """End the stream with an error, as late as Kuma.

        Kuma sends the status of a registered stream after its deregistration delay, in which its close callback sleeps.
        """
        self.record(What.ENDED, reason)
        if self.node:
            self.closed()
            await asyncio.sleep(self.shared.registry.linger(self.node))
        raise GRPCError(status, reason)

    def closed(self) -> None:
        if self.node and not self._left:
            self._left = True
            self.shared.registry.closed(self.number, self.node)


@dataclass
class _Watch:
    """A type: ``waiting`` while the client's last request has no answer, ``nonce`` while our response has none."""

    names: tuple[str, ...] = ()
    version: str = ""
    nonce: str = ""
    waiting: bool = False
    rejected: bool = False
    returned: frozenset[str] = frozenset()


class AdsStream(DiscoveryStream):
    """An ADS stream with its own nonces "1", "2", ... and one response in flight per type."""

    method = "StreamAggregatedResources"

    def __init__(self, shared: Shared, stream: Stream[bytes, bytes]) -> None:
        super().__init__(shared, stream)
        self._watches: dict[str, _Watch] = {}
        self._nonce = 0

    @property
    def service(self) -> Service:
        return self.profile.sotw

    async def requested(self, data: bytes) -> None:
        request = discovery_pb2.DiscoveryRequest.FromString(data)
        if not self.node:
            await self._admit(request)
        existing = self._watches.get(request.type_url)
        watch = existing or self._watches.setdefault(request.type_url, _Watch())
        kind = _kind(request, existing)
        self.note_request(request, data, kind, version=request.version_info, names=tuple(request.resource_names))
        if kind is Kind.STALE:
            return
        watch.names, watch.version = tuple(request.resource_names), request.version_info
        watch.nonce, watch.waiting, watch.rejected = "", True, kind is Kind.NACK
        await self._answer(request.type_url, watch)

    async def _admit(self, request: Any) -> None:
        self.admit(request.node)
        if self.service is Service.ANSWERED:
            await asyncio.sleep(self.shared.faults.registering)
            self.shared.registry.register(self.number, self.node)

    async def review(self) -> None:
        for kind in sorted(self._watches, key=lambda kind: TYPES.index(kind) if kind in TYPES else len(TYPES)):
            watch = self._watches[kind]
            if watch.waiting:
                await self._answer(kind, watch)

    async def _answer(self, kind: str, watch: _Watch) -> None:
        """Send the resources of a type, unless the client has them (go-control-plane's snapshot cache, ADS mode)."""
        faults = self.shared.faults
        if faults.silent or kind in faults.withheld or not self.has_snapshot:
            return
        version, resources = self.state.versions.get(kind, ""), self.state.resources.get(kind, {})
        subscribed = (
            resources if not watch.names else {name: resources[name] for name in watch.names if name in resources}
        )
        if watch.version == version and subscribed.keys() <= watch.returned:
            return
        watch.waiting = False
        if watch.names and not resources.keys() <= set(watch.names):
            self.record(What.UNANSWERED, f"{kind}: {', '.join(sorted(resources.keys() - set(watch.names)))}")
            return
        response = discovery_pb2.DiscoveryResponse(version_info=version, type_url=kind)
        names = list(subscribed)
        if faults.shuffle:
            random.shuffle(names)
        for name in names:
            resource = response.resources.add()
            resource.ParseFromString(subscribed[name])
            if faults.garbage is Garbage.RESOURCE:
                resource.value = GARBAGE
        self._nonce += 1
        watch.nonce = response.nonce = str(self._nonce)
        watch.returned = frozenset(subscribed)
        await asyncio.sleep(faults.slow + (faults.nack_delay if watch.rejected else 0.0))
        self.shared.journal.add(Response(self.number, self.node, kind, version, response.nonce, tuple(names)))
        await self.send(response.SerializeToString())


def _kind(request: Any, watch: _Watch | None) -> Kind:
    if watch is None:
        return Kind.FIRST
    if watch.nonce and request.response_nonce != watch.nonce:
        return Kind.STALE
    if not watch.nonce:
        return Kind.NAMES
    return Kind.NACK if request.HasField("error_detail") else Kind.ACK


def _dataplane(metadata: struct_pb2.Struct) -> dict[str, Any] | None:
    """The Dataplane that a data plane brings with it (`--dataplane-file`)."""
    text = metadata.fields["dataplane.resource"].string_value if "dataplane.resource" in metadata.fields else ""
    tree: dict[str, Any] | None = json.loads(text) if text else None
    return tree


class HdsStream(OneStream):
    """An HDS stream; a node may have any number of them."""

    opens, closes = What.HDS_OPENED, What.HDS_CLOSED

    def __init__(self, shared: Shared, stream: Stream[bytes, bytes]) -> None:
        super().__init__(shared, stream)
        self._sent = b""

    async def received(self, data: bytes) -> None:
        message = hds_pb2.HealthCheckRequestOrEndpointHealthResponse.FromString(data)
        if message.HasField("health_check_request") and not self.node:
            self.check_token()
            self.node = message.health_check_request.node.id
        if message.HasField("endpoint_health_response"):
            self.shared.journal.add(Report(self.number, self.node, _healthy(message.endpoint_health_response)))
        await self.review()

    async def review(self) -> None:
        specifier = self.shared.registry.node(self.node).specifier if self.node else b""
        if not specifier or specifier == self._sent or self.shared.faults.silent:
            return
        self._sent = specifier
        await asyncio.sleep(self.shared.faults.slow)
        await self.send(specifier)


def _healthy(response: Any) -> dict[str, bool]:
    return {
        cluster.cluster_name: all(
            endpoint.health_status == health_check_pb2.HEALTHY
            for locality in cluster.locality_endpoints_health
            for endpoint in locality.endpoints_health
        )
        for cluster in response.cluster_endpoints_health
    }
