"""The event loop where uvloop is not used."""

from __future__ import annotations

import asyncio
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from kumadp.host.reexec.handover import HELD_SIGNALS

# Names that are looked up at a time; those that wait for a silent name server hold up other names alone.
LOOKUPS = 8


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's own, but names are looked up in threads of their own, as uvloop does it.

    A lookup can block for half a minute (resolv.conf(5)), and in the default executor files would wait for it.
    """

    def __init__(self) -> None:
        super().__init__()
        blocked = (signal.SIG_BLOCK, HELD_SIGNALS)
        self._lookups = ThreadPoolExecutor(LOOKUPS, "lookup", signal.pthread_sigmask, blocked)

    async def getaddrinfo(self, host: Any, port: Any, **how: Any) -> Any:
        """As `socket.getaddrinfo`; ``how`` are its family, type, proto and flags."""
        return await self.run_in_executor(self._lookups, partial(socket.getaddrinfo, host, port, **how))

    def close(self) -> None:
        """Wait for no lookup."""
        super().close()
        self._lookups.shutdown(wait=False)
