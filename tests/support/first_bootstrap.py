"""The start of a control plane's part, to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.controlplane.bootstrap_part import BootstrapPart

if TYPE_CHECKING:
    from kumadp.controlplane.part import ControlPlanePart


async def start_with_bootstrap(part: ControlPlanePart) -> None:
    """Request the bootstrap, and wait for it, as a run does."""
    await part.start()
    await BootstrapPart(part).start()
