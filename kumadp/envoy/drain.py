"""Envoy's side of a drain: of a stop, of SIGUSR2, and of `kumadp drain`, which can be undone."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from kumadp.core.events import Requested
from kumadp.core.phases import Phase
from kumadp.decoding import decode_json
from kumadp.envoy.admin import AdminUnreachable
from kumadp.errors import KumadpError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kumadp.core.context import Context
    from kumadp.core.events import Request
    from kumadp.envoy.adopted_envoy import AdoptedEnvoy, Scope
    from kumadp.envoy.component import EnvoyComponent
    from kumadp.envoy.previous_envoy import PreviousEnvoy
    from kumadp.envoy.workload_connections import Direction

    Action = Callable[[], Awaitable[Mapping[str, object]]]

_NOT_READY, _REASON = "drain", "drained by kumadp drain"


class EnvoyDrain:
    """Drains the Envoy that runs, also one that was left and is not adopted yet.

    ``scope`` is what has been drained while everything keeps running: ``inbound`` (the listeners: SIGUSR2 of Kuma 2.8,
    so that a later stop waits for nothing), or ``all`` (Envoy fails its health checks, as at a stop). ``since`` is
    when, in seconds since 1970; 0 if nothing is.
    """

    def __init__(
        self,
        context: Context,
        component: Callable[[], EnvoyComponent | None],
        adopted: Callable[[], AdoptedEnvoy | None],
    ) -> None:
        self._context = context
        self._component = component
        self._adopted = adopted
        self.scope: Scope = ""
        self.since = 0.0

    def actions(self) -> dict[str, Action]:
        """Return the actions of the control socket: each answers when it is done.

        ``POST /connections`` answers with the number of the workload's connections, by direction.
        """
        requests: tuple[Request, ...] = ("drain-inbound", "drain-all", "undrain")
        return {**{what: partial(self._request, what) for what in requests}, "connections": self.connections}

    async def _request(self, what: Request) -> Mapping[str, object]:
        answer = asyncio.get_running_loop().create_future()
        self._context.post(Requested(what, "kumadp drain", answer))
        return {"said": await answer}

    async def change(self, what: Request) -> str:
        """Drain while everything keeps running, or undo it; return what came of it. Raises KumadpError, OSError."""
        if what == "undrain":
            return await self.undo()
        scope = "inbound" if what == "drain-inbound" else "all"
        if self.scope and self.scope != scope:
            raise KumadpError(f"{self.scope} is drained already", "kumadp drain --undo first")
        component = self._running()
        if scope == "inbound":
            self.note_inbound()
            await component.drain_inbound()
            return "inbound drains: its clients are to disconnect; outbound is served as before"
        await self._drain_all(component)
        return "/ready answers 503, and clients are to disconnect; what comes nevertheless is served"

    def resume(self, scope: Scope, since: float) -> None:
        """Continue with what a previous kumadp has drained."""
        if scope:
            self.scope, self.since = scope, since
        if scope == "all":
            self._context.status.set_not_ready(_NOT_READY, _REASON)

    def status(self) -> Mapping[str, object]:
        """Return the section of the status; empty if nothing is drained."""
        return {"drain": {"scope": self.scope, "since": self.since}} if self.scope else {}

    def note_inbound(self) -> None:
        """Count inbound as drained from now on, also if Envoy does not answer."""
        self.scope, self.since = "inbound", time.time()
        self._context.children_changed()

    async def fail_health_checks(self) -> None:
        """Have Envoy fail its health checks, before a stop."""
        if (envoy := self._envoy) is not None:
            await envoy.fail_health_checks()

    async def drain_inbound(self) -> None:
        """Have Envoy drain its inbound listeners."""
        if (envoy := self._envoy) is not None:
            await envoy.drain_inbound()

    async def _drain_all(self, component: EnvoyComponent) -> None:
        """Have Envoy fail its health checks and keep running, and report not ready."""
        status = self._context.status
        self.scope, self.since = "all", time.time()
        status.set_not_ready(_NOT_READY, _REASON)
        status.forget_ready()
        if status.phase is Phase.READY:
            status.move(Phase.STARTING, _REASON)
        self._context.children_changed()
        await component.keep_failing_health_checks()

    async def undo(self) -> str:
        """Undo what was drained; return how. Raises KumadpError, OSError."""
        component, status = self._running(), self._context.status
        if self.scope == "all":
            await component.pass_health_checks()
            how = "Envoy passes its health checks again"
        elif self.scope == "inbound":
            # An Envoy has no way back from /drain_listeners (its documentation of the admin).
            outcome = await component.accept_inbound()
            if not outcome.serves:
                raise KumadpError(f"no new Envoy could replace the one that drains: {outcome.reason}")
            how = "inbound is served by a new Envoy; the old one finishes its requests"
        else:
            raise KumadpError("nothing is drained", "kumadp drain")
        self.scope, self.since = "", 0.0
        status.set_not_ready(_NOT_READY, "")
        self._context.settle()
        self._context.children_changed()
        return how

    async def connections(self) -> Mapping[str, object]:
        """Return the number of connections of the workload, by direction; raises KumadpError."""
        from kumadp.envoy.workload_connections import STATS, workload_connections

        admin = self._running().admin
        try:
            _, body = await admin.get("/listeners?format=json")
            listeners, stats = decode_json(body), await admin.stats(STATS)
        except (AdminUnreachable, ValueError) as error:
            raise KumadpError(f"Envoy's admin does not answer: {error}", "retry in a moment") from None
        directions: tuple[Direction, ...] = ("inbound", "outbound")
        return {direction: workload_connections(listeners, stats, direction) for direction in directions}

    async def idle(self, direction: Direction) -> None:
        """Return once the workload has no connection of that direction through Envoy."""
        from kumadp.envoy.workload_connections import until_idle

        if self._adopted() is not None:
            await self._context.serving_begun.wait()
        if (component := self._component()) is not None:
            await until_idle(component.admin, direction)

    async def gone(self) -> None:
        """Return once Envoy has ended."""
        if (envoy := self._envoy) is not None:
            await envoy.wait_ended()

    @property
    def _envoy(self) -> EnvoyComponent | PreviousEnvoy | None:
        """The Envoy that a drain is about."""
        component, adopted = self._component(), self._adopted()
        if component is not None or adopted is None:
            return component
        from kumadp.envoy.previous_envoy import PreviousEnvoy

        return PreviousEnvoy(adopted)

    def _running(self) -> EnvoyComponent:
        component = self._component()
        if component is None and self._adopted() is not None:
            raise KumadpError("Envoy is being adopted", "retry in a moment")
        if component is None or not component.is_running:
            raise KumadpError("no Envoy runs, so there is nothing to drain", "kumadp status shows why")
        return component
