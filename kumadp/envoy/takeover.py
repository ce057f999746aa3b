"""One hand-over from the current epoch to a new one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import psutil

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.envoy.admin_proof import prove_private
from kumadp.envoy.server_state import ServerState
from kumadp.errors import AdminExposed

if TYPE_CHECKING:
    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.envoy.admin import AdminClient
    from kumadp.process.child import Child

log = logging.getLogger("kumadp.envoy")

_POLL = 0.02
# How long a new epoch that is LIVE may lack a listener of the old one before that is reported (seconds).
LISTENERS_WITHIN = 1.0


class Takeover:
    """One hand-over from the ``current`` epoch to a new one: waits for it and compares the two.

    ``listeners_within``: seconds that the new one has to bind the old one's listeners.
    """

    def __init__(
        self, admin: AdminClient, current: Child | None, *, listeners_within: float = LISTENERS_WITHIN
    ) -> None:
        self._listeners_within = listeners_within
        self._reasons: list[str] = []
        self._server = ServerState(admin, self._reasons.append)
        self._current = current
        self._admin, self._address = admin, admin.address
        self._listeners = frozenset[str]()
        self._bound = frozenset[tuple[str, int]]()

    async def record(self) -> None:
        """Record where the current epoch listens, before anything is changed."""
        self._listeners = await self._server.addresses()
        self._bound = await self._bound_now()

    async def until_live(self, child: Child, epoch: int, deadline: float) -> str:
        """Wait until the new epoch is LIVE, and so has the listeners; returns why it is not, "" if it is.

        ``deadline`` is in seconds.
        """
        ended = asyncio.ensure_future(child.wait())
        try:
            async with asyncio.timeout(deadline):
                while not await self._server.took_over(epoch):
                    await asyncio.wait({ended}, timeout=_POLL)
                    if ended.done():
                        last = child.tail(1)
                        return f"it ended with {ended.result().describe()}{f': {last[0]}' if last else ''}"
        except TimeoutError:
            return f"it was not LIVE within {deadline:g} s{f': {self._reasons[-1]}' if self._reasons else ''}"
        finally:
            ended.cancel()
        return ""

    async def prove(self, child: Child) -> tuple[tuple[str, ...], str]:
        """Return where the old epoch listened and the new one does not, and why its admin is exposed ("": it is not).

        An epoch whose admin others reach is killed.
        """
        try:
            await prove_private(child.pid, self._admin)
            return await self._missing(), ""
        except AdminExposed as error:
            child.kill_with_reason(str(error))
            return (), str(error)

    async def _missing(self) -> tuple[str, ...]:
        """Return where the old epoch listened and the new one does not, a little after it took over."""
        missing = self._listeners
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._listeners_within):
                while missing:
                    missing = self._listeners - await self._server.addresses()
                    await asyncio.sleep(_POLL)
        for address in sorted(missing):
            log.error("the new Envoy does not listen where the old one did: %s", address)
        return tuple(sorted(missing))

    async def lost(self) -> bool:
        """Return whether the current epoch has lost its listeners: a new one that is dead had taken them."""
        return bool(self._bound) and not await self._bound_now()

    async def _bound_now(self) -> frozenset[tuple[str, int]]:
        if self._current is None or self._current.ended:
            return frozenset()
        return await asyncio.to_thread(_listening, self._current.pid, self._address)


def _listening(pid: int, admin: AdminAddress) -> frozenset[tuple[str, int]]:
    """Return where a process listens, without its admin, which it loses early."""
    excluded = (admin.host, admin.port) if isinstance(admin, TcpAdmin) else None
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return frozenset()
    bound = {(item.laddr.ip, item.laddr.port) for item in connections if item.status == psutil.CONN_LISTEN}
    return frozenset(address for address in bound if address != excluded)
