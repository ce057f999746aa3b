"""One hand-over from the current epoch to a new one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from msgspec.structs import replace

from kumadp.bootstrap.admin_address import TcpAdmin, parse_admin
from kumadp.envoy.admin_proof import prove_private
from kumadp.envoy.retirement import Due
from kumadp.envoy.server_state import ServerState
from kumadp.errors import AdminExposed
from kumadp.host.net.listening import listening_addresses
from kumadp.process.progress import ProgressWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.envoy.admin import AdminClient
    from kumadp.envoy.adopted_envoy import EnvoyState
    from kumadp.process.child import Child

log = logging.getLogger("kumadp.envoy")

# An epoch that waits for long is queried less often: what it uses of the processor shows whether it moves (seconds).
_POLL, _POLL_GROWS, _LONGEST_POLL = 0.02, 1.1, 0.25
# One that is LIVE and does not answer for so long is restarted (`kumadp.envoy.hang_watch`).
_ANSWERS_WITHIN = 60.0
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
        self._not_live_at = time.monotonic()
        self._reasons: deque[str] = deque(maxlen=1)
        self._server = ServerState(admin, self._reasons.append)
        self._current = current
        self._admin, self._address = admin, admin.address
        self._listeners = frozenset[str]()
        self._bound = frozenset[tuple[str, int]]()

    async def record(self) -> None:
        """Record where the current epoch listens, before anything is changed."""
        self._listeners = await self._server.addresses() or frozenset()
        self._bound = await self._bound_now()

    async def until_live(
        self, child: Child, epoch: int, idle: float, on_progress: Callable[[], None] = lambda: None
    ) -> str:
        """Wait until the new epoch is LIVE, and so has the listeners; returns why it is not, "" if it is.

        It is waited for as long as it moves (`kumadp.process.progress`): for ``idle`` seconds without progress.
        """
        watch = ProgressWatch(idle, self._counts, on_progress)
        ended, live = asyncio.ensure_future(child.wait()), asyncio.ensure_future(self._took_over(epoch))
        overdue = asyncio.ensure_future(watch.overdue(child.pid))
        try:
            await asyncio.wait({ended, live, overdue}, return_when=asyncio.FIRST_COMPLETED)
            if live.done():
                live.result()
                return ""
            if ended.done():
                last = child.tail(1)
                return f"it ended with {ended.result().describe()}{f': {last[0]}' if last else ''}"
            return f"it is not LIVE: {overdue.result()}{f'; {self._reasons[-1]}' if self._reasons else ''}"
        finally:
            for task in (ended, live, overdue):
                task.cancel()

    async def _took_over(self, epoch: int) -> None:
        """Return once this epoch is LIVE."""
        pause = _POLL
        while True:
            queried = time.monotonic()
            took_over = await self._server.took_over(epoch)
            if took_over:
                return
            if took_over is not None:
                self._not_live_at = queried
            await asyncio.sleep(pause)
            pause = min(pause * _POLL_GROWS, _LONGEST_POLL)

    async def _counts(self, timeout: float) -> Mapping[str, int]:
        """Return what the new epoch waits for, once it has the admin."""
        return await self._server.counts(timeout) if self._reasons else {}

    def old_due(self, parent_shutdown: float) -> Due:
        """Return when the old epoch is due to end; call it when the new one is LIVE. ``parent_shutdown`` in seconds."""
        return Due(self._not_live_at + parent_shutdown, time.monotonic() + parent_shutdown)

    async def prove(self, child: Child) -> tuple[tuple[str, ...], str]:
        """Return where the old epoch listened and the new one does not, and why its admin is exposed ("": it is not).

        An epoch whose admin others reach is killed.
        """
        try:
            await prove_private(child.pid, self._admin)
            return await self._missing(child), ""
        except AdminExposed as error:
            child.kill_with_reason(str(error))
            return (), str(error)

    async def _missing(self, child: Child) -> tuple[str, ...]:
        """Return where the old epoch listened and the new one does not, a little after it took over.

        One that has just taken over many listeners may be too busy to answer: time counts from its first answer.
        """
        loop = asyncio.get_running_loop()
        missing, until, answered = self._listeners, loop.time() + _ANSWERS_WITHIN, False
        while missing and loop.time() < until and not child.ended:
            if (addresses := await self._server.addresses()) is not None:
                missing = self._listeners - addresses
                until, answered = until if answered else loop.time() + self._listeners_within, True
            await asyncio.sleep(_POLL)
        if not answered and self._listeners:
            log.warning("the new Envoy's admin does not answer: its listeners are not compared with the old one's")
            return ()
        for address in sorted(missing):
            log.error("the new Envoy does not listen where the old one did: %s", address)
        return tuple(sorted(missing))

    async def lost(self) -> bool:
        """Return whether the current epoch has lost its listeners: a new one that is dead had taken them."""
        return bool(self._bound) and not await self._bound_now()

    async def _bound_now(self) -> frozenset[tuple[str, int]]:
        if self._current is None or self._current.ended:
            return frozenset()
        return await asyncio.to_thread(listening, self._current.pid, self._address)


def listening(pid: int, admin: AdminAddress | None) -> frozenset[tuple[str, int]]:
    """Return where a process listens, without its admin, which it loses early."""
    excluded = (admin.host, admin.port) if isinstance(admin, TcpAdmin) else None
    return frozenset(address for address in listening_addresses(pid) if address != excluded)


def resumed(state: EnvoyState, alive: Container[int]) -> EnvoyState:
    """Return the state after a hand-over whose end no kumadp has seen. ``alive`` are the processes that are left.

    The new epoch is kept if the old one has lost its listeners to it, else the old one, and the new one is given up: it
    is not LIVE before a kumadp sends it its configuration, and if that takes too long (15 s, Envoy 1.40), it takes over
    without any listener. May block.
    """
    if state.coming in alive and not listening(state.current, parse_admin(state.admin)):
        log.info("the new Envoy took over while no kumadp ran")
        due, generation = time.monotonic() + state.shutdown, state.generation + 1
        new = replace(state, epoch=state.epoch + 1, current=state.coming, retiring=state.current, generation=generation)
        return replace(new, retires_at=due, blind=False, locked="", coming=None)
    log.warning("kumadp was killed while a new Envoy came up: the old one serves on")
    # The new one took the admin when it started.
    return replace(state, blind=True)
