"""Queries of Envoy's admin about its clusters, as tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from kumadp.relay.cluster_report import query_clusters

if TYPE_CHECKING:
    from kumadp.relay.actions import QueryClusters
    from kumadp.relay.cluster_report import ClusterReport

GetAdmin = Callable[[str], Awaitable[bytes | None]]
"""Returns the body that the admin answers to a GET of a path, None if there is no usable answer."""


class ClusterQueries:
    """``on_report`` is called with each answer. Nothing is queried if there is no ``get``."""

    def __init__(self, get: GetAdmin | None, on_report: Callable[[QueryClusters, ClusterReport], None]) -> None:
        self._get = get
        self._on_report = on_report
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, query: QueryClusters) -> None:
        """Query the admin."""
        if self._get is not None:
            task = asyncio.create_task(self._run(query, self._get), name="relay query of clusters")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """End all queries."""
        for task in self._tasks:
            task.cancel()

    async def _run(self, query: QueryClusters, get: GetAdmin) -> None:
        if (report := await query_clusters(get)) is not None:
            self._on_report(query, report)
