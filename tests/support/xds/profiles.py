"""What differs between the versions of Kuma's control plane, seen with 2.8.8, 2.13.5, 2.14.3 and a snapshot of 3.0."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Service(enum.Enum):
    """What becomes of a stream of one protocol."""

    ANSWERED = "answered"
    SILENT = "not answered unless the other protocol serves the node; occupies nothing; ends with OK when closed"
    UNIMPLEMENTED = "ends at once with status UNIMPLEMENTED"


class DeltaBootstrap(enum.Enum):
    """When the bootstrap's ``apiType`` is DELTA_GRPC."""

    NEVER = "never"
    ANNOUNCED = "if the request has feature-delta-grpc"
    ALWAYS = "always"


class Tags(enum.Enum):
    """What the tags of a Dataplane are."""

    NEEDED = "needed: each inbound and gateway has a service"
    OPTIONAL = "taken, not needed"
    IGNORED = "dropped, and an outbound by tags is refused"


@dataclass(frozen=True)
class Profile:
    """A version: how it serves state of the world (``sotw``) and Delta, and what its bootstrap is like."""

    capture: str
    """Folder of the bootstrap that was recorded."""
    sotw: Service = Service.ANSWERED
    delta: Service = Service.ANSWERED
    delta_bootstrap: DeltaBootstrap = DeltaBootstrap.ANNOUNCED
    node_in_every_request: bool = False
    """Delta streams end at the first request without Node (2.11 to 2.13)."""
    folds_clusters: bool = False
    """A change of clusters sends all endpoints of a Delta stream again, and a new stream gets them whatever versions it
    names; else a change sends those of the changed clusters alone."""
    content_versions: bool = False
    """``system_version_info`` follows from the content; else it is a new UUID at each change."""
    admin_socket: bool = False
    """Envoy's admin is a Unix socket."""
    protocol_field: bool = False
    """An inbound's ``protocol`` counts."""
    tags: Tags = Tags.NEEDED
    unified: bool = False
    """Resources have unified names."""


_3_0 = Profile(
    "kuma-3.0-dev/full",
    sotw=Service.SILENT,
    delta_bootstrap=DeltaBootstrap.ALWAYS,
    folds_clusters=True,
    content_versions=True,
    admin_socket=True,
    protocol_field=True,
    tags=Tags.IGNORED,
    unified=True,
)
PROFILES = {
    "2.8": Profile("kuma-2.8.8/dataplane", delta=Service.SILENT, delta_bootstrap=DeltaBootstrap.NEVER),
    "2.13": Profile("kuma-2.13.5/full", node_in_every_request=True),
    "2.14": Profile("kuma-2.14.3/dataplane", admin_socket=True, protocol_field=True, tags=Tags.OPTIONAL),
    "3.0": _3_0,
    "3.0 unimplemented": replace(_3_0, sotw=Service.UNIMPLEMENTED),
}


def profile_of(version: str) -> Profile:
    """The profile of a version, of which the first two numbers count."""
    return PROFILES.get(version) or PROFILES[".".join(version.split(".")[:2])]


def version_by(plain: Mapping[str, Any], announcing: Mapping[str, Any]) -> str:
    """The version whose control plane answers these bootstraps, the second one to a request with feature-delta-grpc."""
    if _api_type(plain) == "DELTA_GRPC":
        return "3.0"
    if _api_type(announcing) == "GRPC":
        return "2.8"
    return "2.14" if "dataplane.admin.socketPath" in plain["node"]["metadata"] else "2.13"


def _api_type(bootstrap: Mapping[str, Any]) -> str:
    return str(bootstrap["dynamicResources"]["adsConfig"]["apiType"])
