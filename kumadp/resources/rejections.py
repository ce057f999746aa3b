"""Which field of a Dataplane a control plane rejects, and what to write instead. Pure.

The texts are those of Kuma 2.8.8 to 2.14.3 and of the development snapshot of 3.0 (2026-08-21): the body of a 422, a
status of the stream. Where a version answers without a text, the Dataplane shows what that version does not have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kumadp.errors import Problem
from kumadp.resources.types import Dataplane

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kumadp.resources.resource import Resource

_OUTBOUND = r"networking\.outbound\[\d{1,6}\]"
_NO_REFERENCE = re.compile(rf"({_OUTBOUND})\.backendRef: must be defined")
_BOTH = re.compile(rf"({_OUTBOUND})[^:]{{0,40}}: both backendRef and tags/service cannot be defined")
_NO_SERVICE = re.compile(r'(networking\.(?:inbound\[\d{1,6}\]|gateway)\.tags)\["kuma\.io/service"\]: tag has to exist')
_REFERENCE = "write backendRef: {kind: MeshService, name: ..., port: ...} in place of tags"
_ZONE_PROXIES = {"ingress": "ZoneIngress", "egress": "ZoneEgress"}


def advise(status: int, text: str, resource: Resource | None, proxy_type: str) -> str:
    """Return what to change after a rejection with this text, in one sentence; empty if it is not known.

    ``status`` is that of HTTP, 0 for one of the stream; ``resource`` is None if only the control plane has it.
    """
    known = (
        _about_proxy_type(status, text, proxy_type),
        _about_outbounds(text, resource),
        _about_tags(text, resource),
        _about_gateway(status, resource),
    )
    return next(filter(None, known), "")


def _about_proxy_type(status: int, text: str, proxy_type: str) -> str:
    kind = _ZONE_PROXIES.get(proxy_type)
    refused = "unsupported proxy type" in text
    if kind is None or not (refused or status >= 500):
        return ""
    condition = "" if refused else "if the control plane is of Kuma 3: "
    return (
        f"{condition}it has no proxy type {proxy_type}; use --proxy-type=dataplane with a Dataplane that has "
        f"networking.listeners: [{{type: {kind}, address: ..., port: ..., name: ...}}] and no inbound, and a token for "
        "a data plane"
    )


def _about_outbounds(text: str, resource: Resource | None) -> str:
    if found := _NO_REFERENCE.search(text):
        return _at(found[1], "it names its service by tags, which Kuma 3 does not accept", _REFERENCE, resource)
    if found := _BOTH.search(text):
        return _at(found[1], "Kuma 2 accepts only one of backendRef and tags", "keep backendRef, remove tags", resource)
    # Kuma 3 takes a Dataplane in the Node that it does not accept as one that is not there.
    if "not found" in text and "create a Dataplane" in text and (path := next(_outbounds_by_tags(resource), "")):
        return _at(path, "Kuma 3 does not accept a Dataplane with outbounds by tags", _REFERENCE, resource)
    return ""


def _about_tags(text: str, resource: Resource | None) -> str:
    found = _NO_SERVICE.search(text)
    message = "control planes before Kuma 2.14 require the tag kuma.io/service"
    hint = "add it; Kuma 3 ignores tags, so one Dataplane may suit all versions"
    return _at(found[1], message, hint, resource) if found else ""


def _about_gateway(status: int, resource: Resource | None) -> str:
    spec = resource.spec if resource is not None else None
    gateway = spec.networking.gateway if isinstance(spec, Dataplane) else None
    if status < 500 or gateway is None or gateway.type != "BUILTIN":
        return ""
    message = "if the control plane is of Kuma 3: it has no builtin gateways"
    return _at("networking.gateway.type", message, "write DELEGATED, for a gateway of your own", resource)


def _outbounds_by_tags(resource: Resource | None) -> Iterator[str]:
    spec = resource.spec if resource is not None else None
    for index, outbound in enumerate(spec.networking.outbound if isinstance(spec, Dataplane) else ()):
        if outbound.backend_ref is None:
            yield f"networking.outbound[{index}]"


def _at(path: str, message: str, hint: str, resource: Resource | None) -> str:
    file, line = resource.where(path) if resource is not None else ("", 0)
    return str(Problem(path, f"{message}; {hint}", "", file, line))
