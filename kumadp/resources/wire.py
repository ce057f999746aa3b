"""Encoding of a resource for the bootstrap request."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from kumadp.durations import in_seconds, parse_nanoseconds
from kumadp.resources.types import Dataplane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.resources.resource import Resource

_NEVER = "0001-01-01T00:00:00Z"
_SECONDS = re.compile(r"[0-9]++(?:\.[0-9]{1,9}+)?+s")
_META = frozenset({"type", "mesh", "name", "labels", "creationTime", "modificationTime"})
_KRI_KIND = {"Dataplane": "dp", "ZoneIngress": "zi", "ZoneEgress": "ze"}


def request_json(resource: Resource, *, without: frozenset[str] = frozenset({"probes"})) -> str:
    """Return the ``dataplaneResource`` of a bootstrap request: a string that holds JSON (Kuma 2.8 and 2.14).

    ``without``: top-level fields to omit. With `probes`, which kumadp serves itself, Envoy would bind its port.
    """
    body: dict[str, Any] = {"type": resource.kind}
    if resource.mesh:
        body["mesh"] = resource.mesh
    body |= {"name": resource.name, "creationTime": _NEVER, "modificationTime": _NEVER}
    if resource.labels:
        body["labels"] = dict(resource.labels)
    body["kri"] = f"kri_{_KRI_KIND[resource.kind]}_{resource.mesh}___{resource.name}_"
    body |= {key: value for key, value in resource.tree.items() if key not in _META and key not in without}
    if isinstance(resource.spec, Dataplane):
        body["networking"] = _with_durations(body["networking"])
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False)


def digest(resource: Resource | None) -> str:
    """Return a digest of what describes the data plane, without ``networking.admin``, whose port a start may choose."""
    if resource is None:
        return ""
    networking = {key: value for key, value in resource.tree["networking"].items() if key != "admin"}
    facts = [
        resource.kind,
        resource.mesh,
        resource.name,
        dict(resource.labels),
        {**resource.tree, "networking": networking},
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _with_durations(networking: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``networking`` with the durations of serviceProbe in the form of protobuf's JSON.

    Kuma also reads ``1m``, ``.3s``, ``1.s`` and more than nine decimals, kuma-dp sends seconds, and Envoy rejects the
    whole configuration with any other form.
    """
    copy = dict(networking)
    if "inbound" in copy:
        copy["inbound"] = [_with_probe(inbound) for inbound in copy["inbound"]]
    return copy


def _with_probe(inbound: Mapping[str, Any]) -> dict[str, Any]:
    copy = dict(inbound)
    if probe := copy.get("serviceProbe"):
        copy["serviceProbe"] = {
            key: _duration(value) if key in {"interval", "timeout"} else value for key, value in probe.items()
        }
    return copy


def _duration(value: Any) -> Any:
    if isinstance(value, str) and not _SECONDS.fullmatch(value):
        return in_seconds(parse_nanoseconds(value))
    return value
