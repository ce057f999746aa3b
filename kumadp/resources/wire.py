"""A resource as the control plane takes it in the bootstrap request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kumadp.resources.load import Resource

_NEVER = "0001-01-01T00:00:00Z"
_META = frozenset({"type", "mesh", "name", "labels", "creationTime", "modificationTime"})
_KRI_KIND = {"Dataplane": "dp", "ZoneIngress": "zi", "ZoneEgress": "ze"}


def request_json(resource: Resource, *, without: frozenset[str] = frozenset({"probes"})) -> str:
    """The ``dataplaneResource`` of a bootstrap request: a text that holds JSON (Kuma 2.8 and 2.14).

    ``without`` names top-level fields to take out: `probes`, which kumadp serves, would make Envoy bind its port.
    """
    body: dict[str, Any] = {"type": resource.kind}
    if resource.mesh:
        body["mesh"] = resource.mesh
    body |= {"name": resource.name, "creationTime": _NEVER, "modificationTime": _NEVER}
    if resource.labels:
        body["labels"] = dict(resource.labels)
    body["kri"] = f"kri_{_KRI_KIND[resource.kind]}_{resource.mesh}___{resource.name}_"
    body |= {key: _normal(value) for key, value in resource.tree.items() if key not in _META and key not in without}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def _normal(value: Any) -> Any:
    """Durations as protobuf's JSON takes them: ``.3s`` and ``1.s`` are legal by the schema only."""
    if isinstance(value, dict):
        return {
            key: _duration(item) if key in {"interval", "timeout"} else _normal(item) for key, item in value.items()
        }
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return value


def _duration(value: Any) -> Any:
    if isinstance(value, str) and value.endswith("s"):
        whole, dot, rest = value[:-1].partition(".")
        return f"{whole or '0'}.{rest}s" if dot and rest else f"{whole or '0'}s"
    return value
