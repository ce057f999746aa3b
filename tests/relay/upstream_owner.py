"""What owners of a connection to the control plane have in common in tests."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

from kumadp.relay.node import encode_node
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from kumadp.relay.upstream import UpstreamConnection

NODE = encode_node({"id": "default.web", "cluster": "web", "metadata": {"dataplane.proxyType": "dataplane"}})


class UpstreamOwner:
    """Owns ``upstream``."""

    upstream: UpstreamConnection

    async def until(self, seen: Callable[[], object], what: str, deadline: float = 20.0) -> None:
        """Wait until ``seen`` is true, at most ``deadline`` seconds; AssertionError names ``what``."""

        async def probe() -> object:
            return seen()

        await poll_async(probe, what=what, deadline=deadline)


Owner = TypeVar("Owner", bound=UpstreamOwner)


@contextlib.asynccontextmanager
async def running(owner: Owner) -> AsyncIterator[Owner]:
    """Run the connection, and end it."""
    task = asyncio.create_task(owner.upstream.run())
    try:
        yield owner
    finally:
        task.cancel()
        await asyncio.wait({task})
