"""Notices that Envoy has other listeners or clusters where no relay sees what it is sent, by its own counters."""

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
# Envoy matches each of its statistics, of which a large mesh has many: at most a fiftieth of its time goes there.
_TIMES = 50


class ListenerChanges:
    """Reads the counters each ``period`` seconds; ``recheck`` is `kumadp.envoy.component.EnvoyComponent.recheck_admin`.

    Other listeners are all to be proved again. Other clusters and endpoints, which a mesh changes all the time, are
    looked for in Envoy's configuration alone, so that no application is asked.
    """

    name = "changes of listeners"

    def __init__(
        self, admin: AdminClient, recheck: Callable[[Collection[str] | None], None], period: float = 5.0
    ) -> None:
        self._admin = admin
        self._recheck = recheck
        self._period = period
        self._known: dict[str, int] = {}

    async def run(self, up: Callable[[], None]) -> None:
        """Look until cancelled."""
        up()
        loop = asyncio.get_running_loop()
        pause = self._period
        while True:
            await asyncio.sleep(pause)
            begun = loop.time()
            try:
                found = await self._admin.stats(_COUNTERS)
            except (AdminUnreachable, ValueError, KeyError, TypeError, AttributeError):
                # It starts, ends or is stopped, which others handle; the counters of the next one begin at zero.
                continue
            finally:
                pause = max(self._period, _TIMES * (loop.time() - begun))
            self._compare(found)

    def _compare(self, found: dict[str, int]) -> None:
        known, self._known = self._known, found
        # The first time there is nothing to compare with, and every listener was asked not long ago.
        if known and any(found.get(name) != known.get(name) for name in _LISTENERS):
            self._recheck(None)
        elif found != known:
            self._recheck(())
