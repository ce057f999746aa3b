"""The event loop that runs when uvloop is not used."""

from __future__ import annotations

import asyncio
import signal
import socket
from functools import partial
from typing import Any

from kumadp.host.reexec.handover import HELD_SIGNALS
from kumadp.host.thread_pool import ThreadPool

# Concurrent name lookups; one that waits for a silent name server delays only other lookups.
LOOKUPS = 8


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop, with separate threads for name lookups, as in uvloop.

    A lookup can block for half a minute (resolv.conf(5)); in the default executor file operations would wait for it.
    """

    def __init__(self) -> None:
        super().__init__()
        blocked = (signal.SIG_BLOCK, HELD_SIGNALS)
        self._lookups = ThreadPool(LOOKUPS, "lookup", signal.pthread_sigmask, blocked)

    async def getaddrinfo(self, host: Any, port: Any, **how: Any) -> Any:
        """Look up a name as `socket.getaddrinfo` does; ``how`` are its family, type, proto and flags."""
        return await self.run_in_executor(self._lookups, partial(socket.getaddrinfo, host, port, **how))

    def close(self) -> None:
        """Close the loop without waiting for lookups."""
        super().close()
        self._lookups.shutdown(wait=False)
