"""A reload: settings and Dataplane are read again, the bootstrap is fetched again, a new epoch of Envoy takes over.

If any step fails, the old Envoy keeps serving.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kumadp.daemon.generation_notes import log_new_notes
from kumadp.envoy.binary import find_envoy
from kumadp.envoy.version import envoy_version
from kumadp.errors import KumadpError
from kumadp.probes.plan import changed_probes
from kumadp.settings.reload import reloaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kumadp.bootstrap.prepare import Prepared
    from kumadp.core.context import Context
    from kumadp.daemon.start import Parts
    from kumadp.envoy.component import EnvoyComponent
    from kumadp.envoy.reload import ReloadOutcome
    from kumadp.resources.resource import Resource
    from kumadp.settings.model import Settings


class Reload:
    """Reloads one at a time; of those that wait only the newest is done.

    ``reread`` reads settings and Dataplane again; it may block.
    """

    def __init__(
        self,
        context: Context,
        parts: Parts,
        reread: Callable[[], tuple[Settings, Resource | None]],
    ) -> None:
        self._context = context
        self._parts = parts
        self._reread = reread
        self._turn = asyncio.Lock()
        self._newest = 0

    async def reload(self, why: str) -> str:
        """Reload, and return the outcome in words; raises KumadpError, and the old Envoy keeps serving."""
        self._newest += 1
        number = self._newest
        async with self._turn:
            if number != self._newest:
                return "a later reload replaced this one"
            return await self._reload(why)

    async def _reload(self, why: str) -> str:
        context, envoy, plane, relay = self._context, self._parts.envoy, self._parts.control_plane, self._parts.relay
        component = envoy.component
        if component is None:
            raise KumadpError("Envoy has not been started yet")
        former = context.bootstrap
        settings, resource = await asyncio.to_thread(self._reread)
        if plane is not None:
            plane.check_resource(resource)
            log_new_notes(context.generation, plane.client.resource, resource)
        binary = await asyncio.to_thread(find_envoy, settings.binary_path)
        version = await envoy_version(binary, context.children_environment)
        notes = await self._apply(settings)
        if note := changed_probes(settings, context.resource, resource):
            notes.append(note)
        prepared = former
        try:
            if plane is not None:
                prepared = await plane.renew(resource, self._parts.versions.note_envoy(version), notes)
            outcome = await self._replace(component, prepared, binary, why)
        except Exception:
            if plane is not None:
                plane.go_back()
            if relay is not None:
                relay.go_back()
            if prepared is not former:
                await asyncio.to_thread(prepared.config_path.unlink, missing_ok=True)
            raise
        await envoy.ran(prepared, binary)
        if former.config_path != prepared.config_path:
            await asyncio.to_thread(former.config_path.unlink, missing_ok=True)
        context.status.note_version("envoy", version.version)
        if outcome.missing:
            notes.append(f"nothing listens on {', '.join(outcome.missing)} any more")
        if relay is not None and (note := relay.renew(prepared, version.version)):
            notes.append(note)
        if plane is not None:
            await plane.renewed()
        await context.use_bootstrap(prepared)
        return "; ".join((f"epoch {outcome.epoch} serves after {outcome.seconds:.1f} s", *notes))

    async def _apply(self, settings: Settings) -> list[str]:
        """Have every part apply what may change while kumadp runs; returns notes for the operator."""
        context = self._context
        context.settings, others = reloaded(context.settings, settings)
        notes = [f"a restart is required for what changed in {', '.join(others)}"] if others else []
        for part in context.parts:
            notes += await part.apply(context.settings)
        return notes

    async def _replace(self, component: EnvoyComponent, prepared: Prepared, binary: Path, why: str) -> ReloadOutcome:
        """Replace the present Envoy by one with this bootstrap; raises KumadpError with the reason."""
        from kumadp.envoy.reload import Plan

        if (relay := self._parts.relay) is not None:
            await relay.prepare_takeover(prepared, hot=component.export() is not None)
        plan = Plan(self._parts.envoy.command(prepared, binary), prepared.admin, prepared.dynamic)
        outcome = await component.reload(why, plan)
        if not outcome.serves:
            raise KumadpError(f"{outcome.reason or outcome.kind.value}; the Envoy that ran keeps serving")
        return outcome
