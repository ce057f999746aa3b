"""The Envoy that the previous kumadp left, until it is adopted: it serves, and a stop must drain it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kumadp.bootstrap.admin_address import parse_admin
from kumadp.envoy.admin import AdminClient, post

if TYPE_CHECKING:
    from kumadp.envoy.adopted_envoy import AdoptedEnvoy


class PreviousEnvoy:
    """Drains an Envoy that no component owns yet, over the admin address that the previous kumadp recorded."""

    def __init__(self, previous: AdoptedEnvoy) -> None:
        self._previous = previous

    async def fail_health_checks(self) -> None:
        """Send ``POST /healthcheck/fail``; raises OSError if it fails or the admin address is unknown."""
        await self._post("/healthcheck/fail")

    async def drain_inbound(self) -> None:
        """Drain the inbound listeners and keep running; raises OSError as `fail_health_checks` does."""
        await self._post("/drain_listeners?inboundonly&graceful&skip_exit")

    async def wait_ended(self) -> None:
        """Return once every Envoy of the previous kumadp has ended."""
        children = (self._previous.current, self._previous.retiring)
        await asyncio.gather(*(child.wait() for child in children if child is not None))

    async def _post(self, path: str) -> None:
        address = parse_admin(self._previous.state.admin)
        if address is None or self._previous.state.blind:
            raise OSError(f"POST {path}: the admin address of the previous kumadp's Envoy is unknown")
        admin = AdminClient(address)
        try:
            await post(admin, path)
        finally:
            await admin.close()
