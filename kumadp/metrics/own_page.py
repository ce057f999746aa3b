"""The page of kumadp's own metrics: made of the status, for the control socket and for the merge with Envoy's."""

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


class OwnMetricsPage:
    """Makes the exposition when it is requested; until then nothing of it is imported."""

    def __init__(self, snapshot: Callable[[], Mapping[str, object]]) -> None:
        self._snapshot = snapshot
        self._lag = LoopLag()
        self._sources: list[Callable[[], Iterable[Metric]]] = []
        self._own: OwnMetrics | None = None

    def add(self, source: Callable[[], Iterable[Metric]]) -> None:
        """Have the families of this source on the page too."""
        self._sources.append(source)
        if self._own is not None:
            self._own.add(source)

    def count_dns(self, counted: Callable[[], tuple[ResolverCounters, int, Mapping[str, str]] | None]) -> None:
        """Add the resolver: its counters, its number of names, and the control plane's labels; None: there is none."""

        def source() -> Iterable[Metric]:
            from kumadp.metrics.dns import families

            counts = counted()
            return families(*counts) if counts is not None else ()

        self.add(source)

    def own(self) -> bytes:
        """In Prometheus' text format 0.0.4, on the event loop; `ready` first, or the first time takes 35 ms."""
        if self._own is None:
            from kumadp.metrics.own_metrics import OwnMetrics

            states = [state.name for state in ChildState]
            self._own = OwnMetrics(self._snapshot, self._lag, states=states, causes=CAUSES)
            for source in self._sources:
                self._own.add(source)
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
