"""What a control plane writes and reads in delta, with the protobuf classes of the protocol's own definition."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from envoy.service.discovery.v3 import discovery_pb2

from kumadp.relay.messages import Response, encode_response
from kumadp.relay.protobuf import field_bytes, field_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NODE = b"\x0a\x04node"


def body_of(name: str, content: str = "") -> bytes:
    """A resource: its name is field 1, as in all types of Envoy."""
    return field_text(1, name) + field_text(9, content)


def any_of(type_url: str, name: str, content: str = "") -> bytes:
    return field_text(1, type_url) + field_bytes(2, body_of(name, content))


def version_of(name: str, content: str = "") -> str:
    return hashlib.sha256(body_of(name, content)).hexdigest()


def delta_response(
    type_url: str, nonce: str, resources: Mapping[str, str] | None = None, removed: Iterable[str] = ()
) -> bytes:
    """A DeltaDiscoveryResponse with a resource of each name, with this content."""
    message = discovery_pb2.DeltaDiscoveryResponse(
        system_version_info="system", type_url=type_url, nonce=nonce, removed_resources=removed
    )
    for name, content in (resources or {}).items():
        resource = message.resources.add(name=name, version=version_of(name, content))
        resource.resource.type_url = type_url
        resource.resource.value = body_of(name, content)
    data: bytes = message.SerializeToString()
    return data


def sotw(type_url: str, resources: Mapping[str, str], version: str = "uuid") -> bytes:
    """A DiscoveryResponse."""
    return encode_response(type_url, version, [any_of(type_url, *pair) for pair in resources.items()])


def contents(response: Response) -> dict[str, str]:
    """The content of each resource by name."""
    message = discovery_pb2.DiscoveryResponse.FromString(response.raw)
    found = {}
    for resource in message.resources:
        assert resource.type_url == response.type_url
        name, _, content = resource.value[2:].partition(b"\x4a")
        found[name.decode()] = content[1:].decode()
    assert message.version_info == response.version
    assert message.nonce == response.nonce
    return found


def parsed(data: bytes) -> Any:
    """A DeltaDiscoveryRequest."""
    return discovery_pb2.DeltaDiscoveryRequest.FromString(data)
