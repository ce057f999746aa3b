"""Envoy's Node as the control plane expects it, encoded from the bootstrap's ``node``.

Fields as in Envoy's ``envoy/config/core/v3/base.proto``; names in camelCase or snake_case, as protobuf's JSON form
allows. What control planes do not read is left out: Envoy's own list of 500 extensions is 60 KB of its 62 KB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kumadp.relay.protobuf import field_bytes, field_double, field_text, field_varint, varint


def encode_node(node: Mapping[str, Any]) -> bytes:
    """Encode an ``envoy.config.core.v3.Node``: id, cluster, metadata, locality, user agent and client features.

    Map keys are sorted, so that equal nodes are equal bytes. Raises ValueError if a field has the wrong type.
    """
    metadata = _get(node, "metadata", Mapping)
    locality = _get(node, "locality", Mapping)
    agent_version = _get(node, "user_agent_build_version", Mapping)
    return b"".join(
        (
            field_text(1, _get(node, "id", str) or ""),
            field_text(2, _get(node, "cluster", str) or ""),
            b"" if metadata is None else field_bytes(3, _struct(metadata)),
            b"" if locality is None else field_bytes(4, _locality(locality)),
            field_text(6, _get(node, "user_agent_name", str) or ""),
            field_text(7, _get(node, "user_agent_version", str) or ""),
            b"" if agent_version is None else field_bytes(8, _build_version(agent_version)),
            *(field_bytes(10, str(feature).encode()) for feature in _get(node, "client_features", list) or ()),
        )
    )


def _locality(locality: Mapping[str, Any]) -> bytes:
    names = ("region", "zone", "sub_zone")
    return b"".join(field_text(number, _get(locality, name, str) or "") for number, name in enumerate(names, 1))


def _build_version(version: Mapping[str, Any]) -> bytes:
    numbers = _get(version, "version", Mapping) or {}
    metadata = _get(version, "metadata", Mapping)
    parts = ("major_number", "minor_number", "patch")
    encoded = b"".join(field_varint(number, _get(numbers, name, int) or 0) for number, name in enumerate(parts, 1))
    return field_bytes(1, encoded) + (b"" if metadata is None else field_bytes(2, _struct(metadata)))


def _struct(value: Mapping[str, Any]) -> bytes:
    """Encode a google.protobuf.Struct, its keys in the order of the deterministic form."""
    return b"".join(
        field_bytes(1, field_text(1, str(key)) + field_bytes(2, _value(item)))
        for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))
    )


def _value(value: object) -> bytes:
    """Encode a google.protobuf.Value, in which all numbers are doubles."""
    if value is None:
        return varint(1 << 3) + varint(0)
    if isinstance(value, bool):
        return varint(4 << 3) + varint(int(value))
    if isinstance(value, int | float):
        return field_double(2, float(value))
    if isinstance(value, Mapping):
        return field_bytes(5, _struct(value))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return field_bytes(6, b"".join(field_bytes(1, _value(item)) for item in value))
    # A date, which YAML has and JSON has not.
    return field_bytes(3, str(value).encode())


def _get(node: Mapping[str, Any], name: str, kind: type) -> Any:
    camel = name.split("_")[0] + "".join(part.title() for part in name.split("_")[1:])
    value = node.get(name, node.get(camel))
    if value is None or isinstance(value, kind):
        return value
    raise ValueError(f"node.{name} is of the wrong kind ({type(value).__name__})")
