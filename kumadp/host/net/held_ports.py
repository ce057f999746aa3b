"""Whether a process of ours would accept a connection, without a look at all its descriptors each time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kumadp.host.descriptors import EXHAUSTED
from kumadp.host.net.listening import is_held_by
from kumadp.host.net.sock_diag import SockDiag

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("kumadp.host")

# How long a listening socket counts as that of another process before the descriptors are read again (seconds).
_VALID = 5.0
# Sockets that are remembered; a client may request all ports there are.
_MOST_REMEMBERED = 256


class HeldPorts:
    """Finds out whether one of the processes ``pids`` would accept a TCP connection.

    The kernel names the listening socket in microseconds. The descriptors of the processes are read for a socket that
    was not seen before, if the processes are others, and every `_VALID` seconds. Without sock_diag(7) they are read
    each time.
    """

    def __init__(self, pids: Callable[[], tuple[int, ...]]) -> None:
        self._pids = pids
        self._diag: SockDiag | None = None
        self._available = True
        # By inode of a listening socket of others: the processes of ours, and until when that is valid.
        self._others: dict[int, tuple[tuple[int, ...], float]] = {}

    async def holds(self, host: str, port: int) -> bool:
        """Return whether one of them would accept a connection to an IP address."""
        pids, now = self._pids(), asyncio.get_running_loop().time()
        inode = self._inode(host, port)
        known, until = self._others.get(inode, ((), 0.0))
        if now < until and known == pids:
            return False
        held = await asyncio.to_thread(is_held_by, pids, host, port)
        if inode and not held:
            if len(self._others) >= _MOST_REMEMBERED:
                self._others.clear()
            self._others[inode] = (pids, now + _VALID)
        return held

    def close(self) -> None:
        """Close the connection to the kernel."""
        if self._diag is not None:
            self._diag.close()
            self._diag = None

    def _inode(self, host: str, port: int) -> int:
        """Return the inode of the socket that would accept, 0 if there is none or it is not known."""
        if not self._available or "%" in host:
            return 0
        try:
            self._diag = self._diag or SockDiag()
            listener = self._diag.listener(host, port)
        except OSError as error:
            self.close()
            if error.errno not in EXHAUSTED:
                self._available = False
                log.debug("listening sockets are read from /proc: %s", error)
            return 0
        return listener.inode if listener is not None else 0
