"""Delta ADS of the test control plane, as Kuma's go-control-plane (0.14) speaks it."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from tests.support.xds.faults import Garbage
from tests.support.xds.journal import Kind, Response
from tests.support.xds.profiles import Service
from tests.support.xds.resources import CLUSTER, ENDPOINTS, LISTENER, SECRET
from tests.support.xds.streams import GARBAGE, DiscoveryStream

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from grpclib.server import Stream

    from tests.support.xds.nodes import Node
    from tests.support.xds.profiles import Profile
    from tests.support.xds.streams import Shared

# What changed together is sent in this order, so a cluster goes before the listener that uses it.
ORDER = (CLUSTER, ENDPOINTS, LISTENER, SECRET)
WILDCARD = "*"


@functools.lru_cache(maxsize=10_000)
def version_of(resource: bytes) -> str:
    """The version of a resource (an encoded Any) on the wire: SHA-256 of its bytes, for every version of Kuma."""
    return hashlib.sha256(any_pb2.Any.FromString(resource).value).hexdigest()


@dataclass
class Subscription:
    """What a client has of a type; ``known`` are versions by name as the server counts them.

    It is ``open`` from a request until its response: changes of a type that is not open wait. ``legacy`` while no name
    was ever subscribed to, which means all.
    """

    wildcard: bool = False
    legacy: bool = True
    names: set[str] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)
    forced: set[str] = field(default_factory=set)
    open: bool = False
    rejected: bool = False
    without_nonce: bool = False
    unanswered: str = ""

    def update(self, subscribed: Iterable[str], unsubscribed: Iterable[str]) -> None:
        """Take the names of a request."""
        if self.legacy:
            if not subscribed:
                return
            self.legacy = False
        for name in subscribed:
            if name == WILDCARD:
                self.wildcard = True
            else:
                self.names.add(name)
        for name in unsubscribed:
            if name == WILDCARD:
                self.wildcard = False
            elif self.wildcard and name in self.names:
                # The client must learn what becomes of it: the empty version differs from any.
                self.known[name] = ""
            else:
                self.known.pop(name, None)
            self.names.discard(name)


class DeltaServer:
    """What a control plane sends a node on one stream, without any stream or clock.

    ``node`` returns the node with what it is served, ``shuffle`` whether resources are sent in random order.
    """

    def __init__(
        self, profile: Profile, node: Callable[[], Node], shuffle: Callable[[list[str]], None] = random.shuffle
    ) -> None:
        self._profile, self._node, self._shuffle = profile, node, shuffle
        self._nonces = itertools.count(1)
        self._subscriptions: dict[str, Subscription] = {}

    def requested(self, request: Any) -> Kind:
        """Take a request, which opens its type."""
        known = self._subscriptions.get(request.type_url)
        kind = _kind(request, known)
        subscribed, unsubscribed = tuple(request.resource_names_subscribe), tuple(request.resource_names_unsubscribe)
        if known is None:
            initial = dict(request.initial_resource_versions)
            known = self._subscriptions[request.type_url] = Subscription(wildcard=not subscribed, known=initial)
        known.update(subscribed, unsubscribed)
        known.open = True
        # An answer to an older response, or other names, answer nothing.
        if kind in {Kind.ACK, Kind.NACK}:
            known.unanswered = ""
        known.rejected = request.HasField("error_detail")
        known.without_nonce = not request.response_nonce
        return kind

    def respond(self, *kinds: str, withheld: Collection[str] = ()) -> Iterator[tuple[Any, bool]]:
        """Responses of types, of all unless named, each with whether it follows a rejection.

        Those to one change are all decided here: a client that answers the first at once changes nothing.
        """
        known = self._subscriptions
        for kind in kinds or (
            *(kind for kind in ORDER if kind in known),
            *(kind for kind in known if kind not in ORDER),
        ):
            subscription = known[kind]
            if not subscription.open or kind in withheld or (response := self._respond(kind, subscription)) is None:
                continue
            endpoints = known.get(ENDPOINTS)
            if not kinds and kind == CLUSTER and endpoints and endpoints.open and not self._profile.folds_clusters:
                # Else a changed cluster would stay in Envoy's warming list.
                endpoints.forced |= {resource.name for resource in response.resources}
            yield response, subscription.rejected

    def _respond(self, kind: str, subscription: Subscription) -> Any:
        """The response with what the client does not know, None where there is nothing; it freezes the type."""
        resources = self._node().resources.get(kind, {})
        wanted = resources.keys() if subscription.wildcard else subscription.names
        known = subscription.known
        folded = self._folded(kind)
        versions = {name: f"{version_of(resources[name])}{folded}" for name in wanted if name in resources}
        changed = [n for n, version in versions.items() if known.get(n) != version or n in subscription.forced]
        watched = known if subscription.wildcard else known.keys() & subscription.names
        removed = [name for name in watched if name not in resources]
        if not changed and not removed and not (subscription.wildcard and subscription.without_nonce):
            return None
        subscription.known, subscription.forced, subscription.open = versions, set(), False
        self._shuffle(changed)
        response = discovery_pb2.DeltaDiscoveryResponse(
            system_version_info=self._system_version(kind), type_url=kind, removed_resources=sorted(removed)
        )
        response.control_plane.identifier = "test-cp"
        for name in changed:
            resource = response.resources.add(name=name, version=version_of(resources[name]))
            resource.resource.ParseFromString(resources[name])
        response.nonce = subscription.unanswered = str(next(self._nonces))
        return response

    def _folded(self, kind: str) -> str:
        """What the server adds to the version by which it counts a resource as known, and which it does not send."""
        if kind == ENDPOINTS and self._profile.folds_clusters and self._node().resources.get(CLUSTER):
            return f" {self._content(CLUSTER)}"
        return ""

    def _system_version(self, kind: str) -> str:
        if not self._profile.content_versions:
            return self._node().versions.get(kind, "")
        return self._content(kind) if kind != ENDPOINTS else _digest([self._content(kind), self._content(CLUSTER)])

    def _content(self, kind: str) -> str:
        resources = self._node().resources.get(kind, {})
        return _digest([f"{name} {version_of(resources[name])}" for name in sorted(resources)])


class DeltaStream(DiscoveryStream):
    """A Delta ADS stream."""

    method = "DeltaAggregatedResources"

    def __init__(self, shared: Shared, stream: Stream[bytes, bytes]) -> None:
        super().__init__(shared, stream)
        self._server = DeltaServer(self.profile, lambda: self.state, self._shuffle)
        self._registered = False
        self._registering: asyncio.TimerHandle | None = None

    def _shuffle(self, names: list[str]) -> None:
        if self.shared.faults.shuffle:
            random.shuffle(names)

    @property
    def service(self) -> Service:
        return self.profile.delta

    async def requested(self, data: bytes) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest.FromString(data)
        if not self.node:
            self._admit(request)
        elif self.profile.node_in_every_request and request.node.id != self.node:
            await self.refuse(
                f"stream was authenticated for ID {self.node}. Received request is for node with ID {request.node.id}. "
                "Node ID cannot be changed after stream is initialized"
            )
        self.note_request(
            request,
            data,
            self._server.requested(request),
            version="",
            names=tuple(request.resource_names_subscribe),
            delta=True,
            unsubscribed=tuple(request.resource_names_unsubscribe),
            initial=dict(request.initial_resource_versions),
        )
        await self._answer(request.type_url)

    def _admit(self, request: Any) -> None:
        self.admit(request.node)
        if self.service is Service.SILENT:
            return
        # Requests are read at the same time, and answered together when there is something to answer.
        if delay := self.shared.faults.registering:
            self._registering = asyncio.get_running_loop().call_later(delay, self._register)
        else:
            self._register()

    def _register(self) -> None:
        self._registered = True
        self.shared.registry.register(self.number, self.node)
        self.wake()

    @property
    def has_snapshot(self) -> bool:
        return super().has_snapshot and (self._registered or self.service is Service.SILENT)

    def closed(self) -> None:
        if self._registering is not None:
            self._registering.cancel()
        super().closed()

    async def review(self) -> None:
        await self._answer()

    async def _answer(self, *kinds: str) -> None:
        """Answer what is open and has something to send, in these types or in all."""
        faults = self.shared.faults
        if faults.silent or not self.has_snapshot:
            return
        for response, rejected in list(self._server.respond(*kinds, withheld=faults.withheld)):
            await asyncio.sleep(faults.slow + (faults.nack_delay if rejected else 0.0))
            await self._send(response)

    async def _send(self, response: Any) -> None:
        if self.shared.faults.garbage is Garbage.RESOURCE:
            for resource in response.resources:
                resource.resource.value = GARBAGE
        versions = {resource.name: resource.version for resource in response.resources}
        self.shared.journal.add(
            Response(
                stream=self.number,
                node=self.node,
                type_url=response.type_url,
                version=response.system_version_info,
                nonce=response.nonce,
                names=tuple(versions),
                delta=True,
                versions=versions,
                removed=tuple(response.removed_resources),
            )
        )
        await self.send(response.SerializeToString())


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _kind(request: Any, subscription: Subscription | None) -> Kind:
    if subscription is None:
        return Kind.FIRST
    if not request.response_nonce:
        return Kind.NAMES
    if request.response_nonce != subscription.unanswered:
        return Kind.STALE
    return Kind.NACK if request.HasField("error_detail") else Kind.ACK
