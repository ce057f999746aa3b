"""Detects changed listeners and clusters by Envoy's own counters, if no relay sees what Envoy is sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kumadp.envoy.admin import AdminUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from kumadp.envoy.admin import AdminClient

_LISTENERS = ("listener_manager.listener_added", "listener_manager.listener_modified")
# cluster_updated counts changes of endpoints, too (Envoy docs: cluster manager statistics).
_CLUSTERS = tuple(f"cluster_manager.cluster_{what}" for what in ("added", "modified", "updated"))
_COUNTERS = f"^({'|'.join(_LISTENERS + _CLUSTERS)})$".replace(".", r"\.")
# Envoy matches each of its statistics, of which a large mesh has many: at most a fiftieth of its time is spent on that.
_PAUSE_TIMES = 50


class ListenerChanges:
    """Reads the counters each ``period`` seconds; ``recheck`` is `kumadp.envoy.component.EnvoyComponent.recheck_admin`.

    After a change of listeners, all of them are proved again. Changed clusters and endpoints, which are frequent in a
    mesh, are looked up in Envoy's configuration alone, so that no application gets a request.
    """

    name = "changes of listeners"

    def __init__(
        self, admin: AdminClient, recheck: Callable[[Collection[str] | None], None], period: float = 5.0
    ) -> None:
        self._admin = admin
        self._recheck = recheck
        self._period = period
        self._previous: dict[str, int] = {}

    async def run(self, up: Callable[[], None]) -> None:
        """Run until cancelled."""
        up()
        loop = asyncio.get_running_loop()
        pause = self._period
        while True:
            await asyncio.sleep(pause)
            begun = loop.time()
            try:
                counters = await self._admin.stats(_COUNTERS)
            except (AdminUnreachable, ValueError, KeyError, TypeError, AttributeError):
                # It starts, ends or is stopped, which is handled elsewhere; the counters of the next one begin at zero.
                continue
            finally:
                pause = max(self._period, _PAUSE_TIMES * (loop.time() - begun))
            self._compare(counters)

    def _compare(self, counters: dict[str, int]) -> None:
        previous, self._previous = self._previous, counters
        # The first time there is nothing to compare with, and every listener was proved not long ago.
        if previous and any(counters.get(name) != previous.get(name) for name in _LISTENERS):
            self._recheck(None)
        elif counters != previous:
            self._recheck(())
