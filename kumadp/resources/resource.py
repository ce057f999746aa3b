"""A checked resource."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import msgspec.structs
from msgspec import Struct, field

from kumadp.resources.types import Admin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.errors import Problem
    from kumadp.resources.types import Spec


class Resource(Struct, frozen=True):
    """A checked Dataplane, ZoneIngress or ZoneEgress.

    ``tree`` is the document as it is sent on, with known names normalised and unknown keys kept. ``notes`` are remarks
    that do not prevent its use.
    """

    kind: str
    mesh: str
    name: str
    labels: Mapping[str, str]
    tree: Mapping[str, Any]
    spec: Spec
    source: str
    notes: tuple[Problem, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict)

    def where(self, path: str) -> tuple[str, int]:
        """Return file and line of a field path, or of the longest part of it in the document; line 0 if unknown."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.source, self.lines.get(path, 0)


def with_admin_port(resource: Resource, port: int) -> Resource:
    """Return the resource with this ``networking.admin.port``, unless it sets one itself."""
    networking = resource.spec.networking
    if networking.admin is not None and networking.admin.port:
        return resource
    spec = msgspec.structs.replace(
        resource.spec, networking=msgspec.structs.replace(networking, admin=Admin(port=port))
    )
    tree = {**resource.tree, "networking": {**resource.tree["networking"], "admin": {"port": port}}}
    return msgspec.structs.replace(resource, spec=spec, tree=tree)
