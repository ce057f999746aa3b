"""Bootstrap requests that Kuma refuses, with its words; as seen with 2.8.8, 2.13.5, 2.14.3 and a snapshot of 3.0."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.scripted_control_plane import Answer
from tests.support.xds.mesh import SERVICE
from tests.support.xds.profiles import Profile, Tags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.xds.resources import Tree


def refusal(request: Tree, profile: Profile) -> Answer | None:
    """The answer to a request that is refused, None if it is not.

    A Dataplane that is invalid gets 422 with the reasons. What this version has no name for gets 500 without a word:
    other proxy types than ``dataplane`` and built-in gateways from 3.0 on.
    """
    resource: Tree = json.loads(request["dataplaneResource"]) if request.get("dataplaneResource") else {}
    networking: Tree = resource.get("networking") or {}
    gateway: Tree = networking.get("gateway") or {}
    if profile.tags is Tags.IGNORED and (request["proxyType"] != "dataplane" or gateway.get("type") == "BUILTIN"):
        return Answer(500)
    violations = [*_outbounds(networking, profile), *_tags(networking, gateway, profile)]
    return Answer(422, "; ".join(violations).encode()) if violations else None


def _outbounds(networking: Tree, profile: Profile) -> Iterator[str]:
    for index, outbound in enumerate(networking.get("outbound") or []):
        path = f"networking.outbound[{index}]"
        if profile.tags is Tags.IGNORED and "backendRef" not in outbound:
            yield f"{path}.backendRef: must be defined"
        if profile.tags is not Tags.IGNORED and "backendRef" in outbound and "tags" in outbound:
            yield f"{path}.backendRef: both backendRef and tags/service cannot be defined"


def _tags(networking: Tree, gateway: Tree, profile: Profile) -> Iterator[str]:
    if profile.tags is not Tags.NEEDED:
        return
    for index, inbound in enumerate(networking.get("inbound") or []):
        if SERVICE not in (inbound.get("tags") or {}):
            yield f'networking.inbound[{index}].tags["{SERVICE}"]: tag has to exist'
    if gateway and SERVICE not in (gateway.get("tags") or {}):
        yield f'networking.gateway.tags["{SERVICE}"]: tag has to exist'
