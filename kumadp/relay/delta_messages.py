"""DeltaDiscoveryRequest and DeltaDiscoveryResponse: the outer fields, the resources as opaque bytes.

Fields as in Envoy's ``envoy/service/discovery/v3/discovery.proto``. Raises BadMessage.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.records import hiding
from kumadp.relay.protobuf import BadMessage, field_bytes, field_text, fields, text
from kumadp.relay.resources import value_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Resources, or removed names, of one message or one type. A mesh of 10,000 services has some 40,000.
MOST_RESOURCES = 200_000


class DeltaResource(Struct, frozen=True):
    """A resource: a raw google.protobuf.Any, and its version as Kuma computes it.

    The version is the SHA-256 of the resource's bytes, in hexadecimal (Kuma 2.13, 2.14 and 3.0; go-control-plane's
    HashResource).
    """

    data: memoryview
    version: str

    __repr__ = hiding("data")


class DeltaResponse(Struct, frozen=True):
    """A DeltaDiscoveryResponse: what has changed, by name, and what is gone."""

    type_url: str
    version: str
    nonce: str
    resources: Mapping[str, DeltaResource]
    removed: frozenset[str]
    fault: str = ""
    """Why the resources cannot be read, empty if they can."""

    @classmethod
    def parse(cls, data: bytes) -> DeltaResponse:
        """Parse the message; without a type it is rejected, while a fault of the resources is only noted."""
        version = type_url = nonce = fault = ""
        removed: set[str] = set()
        wrappers = []
        for number, start, end in fields(data):
            if number == 2:
                wrappers.append((start, end))
            elif number == 1:
                version = text(data, start, end)
            elif number == 4:
                type_url = text(data, start, end)
            elif number == 5:
                nonce = text(data, start, end)
            elif number == 6:
                removed.add(text(data, start, end))
            if len(wrappers) > MOST_RESOURCES or len(removed) > MOST_RESOURCES:
                raise BadMessage(f"it has more than {MOST_RESOURCES} resources")
        if not type_url:
            raise BadMessage("it names no type")
        resources: dict[str, DeltaResource] = {}
        try:
            for start, end in wrappers:
                _read_wrapper(data, start, end, resources)
        except BadMessage as error:
            resources, fault = {}, str(error)
        return cls(type_url, version, nonce, resources, frozenset(removed - resources.keys()), fault)


def encode_delta_request(
    type_url: str,
    *,
    node: bytes = b"",
    subscribe: Iterable[str] = (),
    unsubscribe: Iterable[str] = (),
    versions: Mapping[str, str] | None = None,
    nonce: str = "",
    error: bytes = b"",
) -> bytes:
    """Encode a DeltaDiscoveryRequest; ``versions`` are the initial ones by name, ``error`` a google.rpc.Status."""
    return b"".join(
        (
            field_bytes(1, node) if node else b"",
            field_text(2, type_url),
            *(field_bytes(3, name.encode()) for name in subscribe),
            *(field_bytes(4, name.encode()) for name in unsubscribe),
            *(
                field_bytes(5, field_text(1, name) + field_text(2, version))
                for name, version in (versions or {}).items()
            ),
            field_text(6, nonce),
            field_bytes(7, error) if error else b"",
        )
    )


def version_of(data: bytes, start: int, end: int) -> str:
    """Return the version of a resource, the raw google.protobuf.Any in ``data[start:end]``. Raises BadMessage."""
    at = value_at(data, start, end)
    value = memoryview(data)[at:end] if at else memoryview(b"")
    for number, first, last in () if at else fields(data, start, end):
        if number == 2:
            value = memoryview(data)[first:last]
    return hashlib.sha256(value).hexdigest()


def _read_wrapper(data: bytes, start: int, end: int, resources: dict[str, DeltaResource]) -> None:
    """Read one ``DeltaResource``; one without content, a heartbeat of its time to live, changes nothing."""
    name, content = "", None
    at = (0, 0)
    for number, first, last in fields(data, start, end):
        if number == 3:
            name = text(data, first, last)
        elif number == 2:
            content, at = memoryview(data)[first:last], (first, last)
    if not name:
        raise BadMessage("a resource has no name")
    if content is not None:
        resources[name] = DeltaResource(content, version_of(data, *at))
