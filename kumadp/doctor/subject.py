"""Whom the doctor looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kumadp.host.environment import child_environment
from kumadp.settings.model import secret_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.resources.load import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings
    from kumadp.standalone.mesh import Mesh


@dataclass(frozen=True, slots=True)
class Subject:
    """A data plane as `run` would have it; ``status`` is that of the kumadp which runs it already, empty where none."""

    settings: Settings
    resource: Resource | None
    mesh: Mesh | None
    transparent: TransparentProxy | None
    environ: Mapping[str, str]
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name."""
        return self.resource.name if self.resource is not None else self.settings.name

    @property
    def mesh_name(self) -> str:
        """Its mesh."""
        return self.resource.mesh if self.resource is not None else self.settings.mesh

    @property
    def children_environment(self) -> dict[str, str]:
        """What programs that are asked may see."""
        return child_environment(self.environ, secret_variables())

    @property
    def pids(self) -> frozenset[int]:
        """The kumadp that runs, and its children."""
        children = self.status.get("children", {}).values()
        found = (self.status.get("pid"), *(child.get("pid") for child in children))
        return frozenset(pid for pid in found if pid)
