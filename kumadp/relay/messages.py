"""DiscoveryRequest and DiscoveryResponse: the outer fields, the resources as opaque bytes.

State of the world only; fields as in Envoy's ``envoy/service/discovery/v3/discovery.proto``. Raises BadMessage.
"""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.records import hiding
from kumadp.relay.protobuf import BadMessage, field_bytes, field_text, field_varint, fields, text
from kumadp.relay.resources import Place, XdsResource, by_name, digest_of, read_resources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["BadMessage", "Request", "Response", "encode_response", "encode_status", "status_message"]

TYPES = "type.googleapis.com/"
CLUSTER = f"{TYPES}envoy.config.cluster.v3.Cluster"
ENDPOINTS = f"{TYPES}envoy.config.endpoint.v3.ClusterLoadAssignment"
ROUTES = f"{TYPES}envoy.config.route.v3.RouteConfiguration"
LISTENER = f"{TYPES}envoy.config.listener.v3.Listener"
# The tags of version_info and type_url.
_VERSION, _TYPE = b"\x0a", b"\x22"
SECRET = f"{TYPES}envoy.extensions.transport_sockets.tls.v3.Secret"


class Request(Struct, frozen=True):
    """A DiscoveryRequest. ``node`` is an encoded Node or empty, ``error`` an encoded google.rpc.Status or empty."""

    type_url: str
    version: str = ""
    node: bytes = b""
    names: tuple[str, ...] = ()
    nonce: str = ""
    error: bytes = b""

    def encode(self) -> bytes:
        """Encode the message; an empty ``node`` or ``error`` is omitted."""
        return b"".join(
            (
                field_text(1, self.version),
                field_bytes(2, self.node) if self.node else b"",
                *(field_bytes(3, name.encode()) for name in self.names),
                field_text(4, self.type_url),
                field_text(5, self.nonce),
                field_bytes(6, self.error) if self.error else b"",
            )
        )

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Parse the outer fields; a request without a type is rejected, since one stream carries all types (ADS)."""
        version = type_url = nonce = ""
        node = error = b""
        rejected = False
        names = []
        for number, start, end in fields(data):
            if number == 3:
                names.append(text(data, start, end))
            elif number == 1:
                version = text(data, start, end)
            elif number == 2:
                node = data[start:end]
            elif number == 4:
                type_url = text(data, start, end)
            elif number == 5:
                nonce = text(data, start, end)
            elif number == 6:
                error, rejected = data[start:end], True
        if not type_url:
            raise BadMessage("it names no type")
        # A status of nothing but defaults is empty on the wire, yet its presence alone means a rejection.
        return cls(type_url, version, node, tuple(names), nonce, error or (UNKNOWN if rejected else b""))


class Outline(Struct, frozen=True):
    """A response without its resources."""

    type_url: str
    version: str
    nonce: str


class Response(Struct, frozen=True, dict=True):
    """A DiscoveryResponse; ``raw`` is the message as received, which is passed on unchanged if possible."""

    type_url: str
    version: str
    nonce: str
    raw: bytes
    sent: frozenset[str] | None = None
    """The names of the resources that the control plane sent just now; None: all. The others it sent before."""
    places: Mapping[str, Place] | None = None
    """Where the resources are, by name, if that is known already."""
    named: dict[str, XdsResource] | None = None
    """The resources, if they were read already."""

    __repr__ = hiding("places", "named")

    def brings(self, name: str) -> bool:
        """Return True if the control plane sent the resource of this name just now."""
        return self.sent is None or name in self.sent

    @classmethod
    def parse(cls, data: bytes) -> Response:
        """Parse the outer fields; a response without a type is rejected."""
        outer, _ = _outer(data)
        return cls(outer.type_url, outer.version, outer.nonce, data)

    @classmethod
    def read(cls, data: bytes, former: Callable[[str], Mapping[str, XdsResource]]) -> Response:
        """Parse the message with its resources; ``former`` returns those of a type that were read before.

        Most resources of a new response are the same, and a comparison takes less than a digest.
        """
        outer, spans = _outer(data)
        named = by_name(read_resources(data, spans, former(outer.type_url)))
        return cls(outer.type_url, outer.version, outer.nonce, data, named=named)

    @property
    def resources(self) -> tuple[bytes, ...]:
        """Each resource as a raw google.protobuf.Any, in the order of the message."""
        return tuple(self.raw[start:end] for number, start, end in fields(self.raw) if number == 2)

    @cached_property
    def by_name(self) -> dict[str, XdsResource]:
        """The resources by name; those without a name by their digest."""
        if self.named is not None:
            return self.named
        if self.places is None:
            return by_name(read_resources(self.raw, _outer(self.raw)[1], {}))
        return {
            name: XdsResource(name, place.digest, self.raw, place.start, place.end)
            for name, place in self.places.items()
        }

    @cached_property
    def digest(self) -> bytes:
        """A digest of the set of resources: control planes shuffle them and renew versions of equal content."""
        return digest_of(self.by_name.values())


def _outer(data: bytes) -> tuple[Outline, list[tuple[int, int]]]:
    """Return a response without its resources, and where these are. Raises BadMessage."""
    version = type_url = nonce = ""
    spans = []
    for number, start, end in fields(data):
        if number == 2:
            spans.append((start, end))
        elif number == 1:
            version = text(data, start, end)
        elif number == 4:
            type_url = text(data, start, end)
        elif number == 5:
            nonce = text(data, start, end)
    if not type_url:
        raise BadMessage("it names no type")
    return Outline(type_url, version, nonce), spans


def encode_response(type_url: str, version: str, resources: Iterable[bytes | memoryview], nonce: str = "") -> bytes:
    """Encode a DiscoveryResponse of resources that are raw google.protobuf.Any messages."""
    return b"".join(
        (
            field_text(1, version),
            *(field_bytes(2, resource) for resource in resources),
            field_text(4, type_url),
            field_text(5, nonce),
        )
    )


def encode_nonce(nonce: str) -> bytes:
    """Encode a nonce to be appended to a response, whose own it replaces: the last value of a scalar field counts."""
    return field_bytes(5, nonce.encode())


def outline(head: bytes, tail: bytes) -> Outline:
    """Find type, version and nonce of a response in its first and last bytes; raises BadMessage.

    Every encoder writes fields by their number: the version before the resources, type and nonce after them.
    """
    version = ""
    if head[:1] == _VERSION:
        with contextlib.suppress(BadMessage):
            version = next((text(head, start, end) for number, start, end in fields(head) if number == 1), "")
    at = tail.rfind(_TYPE)
    while at >= 0:
        # Resources can hold the same byte: it is the tag only if type and nonce follow, up to the very end.
        with contextlib.suppress(BadMessage):
            trailing = {number: (start, end) for number, start, end in fields(tail, at)}
            type_url = text(tail, *trailing[4])
            # 6 is the identifier of the control plane; in delta 6 and 8 are removed names, and 7 that identifier.
            if trailing.keys() <= {4, 5, 6, 7, 8} and type_url.startswith(TYPES):
                return Outline(type_url, version, text(tail, *trailing[5]) if 5 in trailing else "")
        at = tail.rfind(_TYPE, 0, at)
    raise BadMessage("its type is not at its end")


def encode_status(code: int, message: str) -> bytes:
    """Encode a google.rpc.Status; codes as in gRPC."""
    return field_varint(1, code) + field_text(2, message)


def status_message(status: bytes) -> str:
    """Return the text of a google.rpc.Status, ``no reason given`` if there is no readable one."""
    try:
        messages = [text(status, start, end) for number, start, end in fields(status) if number == 2]
    except BadMessage:
        messages = []
    return next((message for message in reversed(messages) if message), "no reason given")


UNKNOWN = encode_status(2, "")
