"""The wait for the bootstrap in a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.core.part import Part

if TYPE_CHECKING:
    from kumadp.controlplane.part import ControlPlanePart


class BootstrapPart(Part):
    """Waits for the bootstrap; what starts after it needs it."""

    name = "bootstrap"

    def __init__(self, plane: ControlPlanePart) -> None:
        self._plane = plane

    async def start(self) -> None:
        """Return when every part has the bootstrap; raises KumadpError if there will be none."""
        await self._plane.get_bootstrap()
