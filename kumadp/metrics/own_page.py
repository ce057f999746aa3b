"""kumadp's own metrics in this run: of the status, for the control socket and for whoever merges them."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING

from kumadp.metrics.loop_lag import LoopLag
from kumadp.process.restart_policy import ChildState
from kumadp.process.supervisor import CAUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.core import Metric

    from kumadp.metrics.dns import ResolverCounters
    from kumadp.metrics.own_metrics import OwnMetrics


class Measuring:
    """Makes the exposition when it is asked for; until then nothing of it is imported."""

    def __init__(self, snapshot: Callable[[], Mapping[str, object]]) -> None:
        self._snapshot = snapshot
        self._lag = LoopLag()
        self._more: list[Callable[[], Iterable[Metric]]] = []
        self._own: OwnMetrics | None = None

    def add(self, more: Callable[[], Iterable[Metric]]) -> None:
        """Ask this part for families of its own too."""
        self._more.append(more)
        if self._own is not None:
            self._own.add(more)

    def count_dns(self, counted: Callable[[], tuple[ResolverCounters, int, Mapping[str, str]] | None]) -> None:
        """Tell of the resolver: its counters, how many names it has, and the control plane's labels; None of none."""

        def more() -> Iterable[Metric]:
            from kumadp.metrics.dns import families

            found = counted()
            return families(*found) if found is not None else ()

        self.add(more)

    def own(self) -> bytes:
        """In Prometheus' text format 0.0.4, on the event loop; `ready` first, or the first time takes 35 ms."""
        if self._own is None:
            from kumadp.metrics.own_metrics import OwnMetrics

            states = [state.name for state in ChildState]
            self._own = OwnMetrics(self._snapshot, self._lag, states=states, causes=CAUSES)
            for more in self._more:
                self._own.add(more)
        return self._own.exposition()

    async def ready(self) -> None:
        """Import what is needed, in a thread."""
        if self._own is None:
            await asyncio.to_thread(import_module, "kumadp.metrics.own_metrics")

    async def page(self) -> tuple[bytes, str]:
        """As `own`, with its content type."""
        await self.ready()
        from kumadp.metrics.own_metrics import CONTENT_TYPE

        return self.own(), CONTENT_TYPE
