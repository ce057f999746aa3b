"""The data plane that the doctor checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from kumadp.host.environment import child_environment
from kumadp.settings.model import secret_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.resources.resource import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings
    from kumadp.standalone.mesh import Mesh


class Subject(Struct, frozen=True):
    """A data plane as `run` would start it; ``status`` is that of the kumadp that already runs it, else empty.

    ``origins``: where each setting is from, by its field.
    """

    settings: Settings
    resource: Resource | None
    mesh: Mesh | None
    transparent: TransparentProxy | None
    environ: Mapping[str, str]
    status: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the data plane."""
        return self.resource.name if self.resource is not None else self.settings.name

    @property
    def mesh_name(self) -> str:
        """Mesh of the data plane."""
        return self.resource.mesh if self.resource is not None else self.settings.mesh

    @property
    def children_environment(self) -> dict[str, str]:
        """Environment of the programs that checks run."""
        return child_environment(self.environ, secret_variables())

    @property
    def pids(self) -> frozenset[int]:
        """The running kumadp and its children."""
        children = self.status.get("children", {}).values()
        pids = (self.status.get("pid"), *(child.get("pid") for child in children))
        return frozenset(pid for pid in pids if pid)
