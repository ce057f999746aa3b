"""Envoy's part of a drain: of the running Envoy, or of one that the previous kumadp left and none has adopted yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.envoy.previous_envoy import PreviousEnvoy

if TYPE_CHECKING:
    from kumadp.core.context import Run
    from kumadp.envoy.component import EnvoyComponent
    from kumadp.envoy.part import Running
    from kumadp.envoy.workload_connections import Direction


class EnvoyDrain:
    """The steps of a drain as calls to Envoy's admin (`kumadp.daemon.drain_walk.Drained`)."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._running: Running | None = None
        self._inbound_drained = False

    @property
    def serves(self) -> bool:
        """Whether an Envoy runs: the component's, or a previous one that is not adopted yet."""
        envoy = self._component
        return (envoy is not None and envoy.is_running) or self._run.before.serves

    @property
    def _component(self) -> EnvoyComponent | None:
        return self._running.component if self._running is not None else None

    async def fail_health_checks(self) -> None:
        """Request that Envoy fails its health checks; raises OSError."""
        if (envoy := self._drained) is not None:
            await envoy.fail_health_checks()

    def note_inbound_drain(self) -> None:
        """Note that a stop from now on waits for nothing, even if Envoy does not answer (Kuma 2.8)."""
        self._inbound_drained = self._run.before.inbound_drained = True

    async def drain_inbound(self) -> None:
        """Request that Envoy drains inbound; raises OSError."""
        if (envoy := self._drained) is not None:
            await envoy.drain_inbound()

    async def idle(self, direction: Direction) -> None:
        """Return once the workload has no connection of that direction through Envoy."""
        from kumadp.envoy.workload_connections import until_idle

        if self._run.before.envoy is not None:
            await self._run.envoy_up.wait()
        if (envoy := self._component) is not None:
            await until_idle(envoy.admin, direction)

    async def envoy_gone(self) -> None:
        """Return once Envoy has ended."""
        if (envoy := self._drained) is not None:
            await envoy.wait_ended()

    @property
    def _drained(self) -> EnvoyComponent | PreviousEnvoy | None:
        """The Envoy to drain, also a previous one that is not adopted yet."""
        previous = self._run.before.envoy
        return self._component or (PreviousEnvoy(previous) if previous is not None else None)
