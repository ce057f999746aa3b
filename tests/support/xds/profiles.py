"""What differs between the versions of Kuma's control plane, seen with 2.8.8, 2.13.5, 2.14.3 and a snapshot of 3.0."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace


class Service(enum.Enum):
    """What becomes of a stream of one protocol."""

    ANSWERED = "answered"
    SILENT = "opens, is never answered, occupies nothing, and ends with OK when the client closes it"
    UNIMPLEMENTED = "ends at once with status UNIMPLEMENTED"


class DeltaBootstrap(enum.Enum):
    """When the bootstrap's ``apiType`` is DELTA_GRPC."""

    NEVER = "never"
    ANNOUNCED = "if the request has feature-delta-grpc"
    ALWAYS = "always"


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
    unified: bool = False
    """Resources have unified names, and inbounds need no tags."""


_3_0 = Profile(
    "kuma-3.0-dev/full",
    sotw=Service.SILENT,
    delta_bootstrap=DeltaBootstrap.ALWAYS,
    folds_clusters=True,
    content_versions=True,
    unified=True,
)
PROFILES = {
    "2.8": Profile("kuma-2.8.8/dataplane", delta=Service.SILENT, delta_bootstrap=DeltaBootstrap.NEVER),
    "2.13": Profile("kuma-2.13.5/full", node_in_every_request=True),
    "2.14": Profile("kuma-2.14.3/dataplane"),
    "3.0": _3_0,
    "3.0 unimplemented": replace(_3_0, sotw=Service.UNIMPLEMENTED),
}


def profile_of(version: str) -> Profile:
    """The profile of a version, of which the first two numbers count."""
    return PROFILES.get(version) or PROFILES[".".join(version.split(".")[:2])]
