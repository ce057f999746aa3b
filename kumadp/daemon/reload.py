"""A reload: settings and Dataplane are read again, the bootstrap is fetched again, a new epoch of Envoy takes over."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kumadp.daemon.sources import KumaSource
from kumadp.errors import ControlPlaneUnavailable, KumadpError
from kumadp.host.work_dir import bootstrap_file
from kumadp.settings.reload import reloaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kumadp.controlplane.bootstrap_client import Fetched
    from kumadp.core.context import Run
    from kumadp.daemon.configuration import Configuration
    from kumadp.daemon.sources import Prepared, Source
    from kumadp.envoy.component import EnvoyComponent
    from kumadp.envoy.part import Running
    from kumadp.envoy.reload import ReloadOutcome
    from kumadp.envoy.version import EnvoyVersion
    from kumadp.relay.part import Relaying
    from kumadp.resources.load import Resource
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.daemon")

# How long a reload waits for a control plane that may be away (seconds): then Envoy gets the bootstrap it has.
PATIENCE = 5.0
# How long it waits until memory holds all that a new Envoy will ask for (seconds): longer than a stream is refused.
SUPPLIED_WITHIN = 20.0


class Renewal:
    """Reloads one at a time; of those that wait the newest alone is done."""

    def __init__(
        self,
        run: Run,
        configuration: Configuration,
        running: Running,
        source: Source,
        reread: Callable[[], tuple[Settings, Resource | None]],
    ) -> None:
        self._run = run
        self._configuration = configuration
        self._running = running
        self._source = source
        self._reread = reread
        self._turn = asyncio.Lock()
        self._newest = 0
        self._files = 0

    async def reload(self, why: str) -> str:
        """What came of it, in words; raises KumadpError, and the old Envoy serves on."""
        self._newest += 1
        mine = self._newest
        async with self._turn:
            if mine != self._newest:
                return "a later reload took its place"
            return await self._reload(why)

    async def _reload(self, why: str) -> str:
        running, configuration = self._running, self._configuration
        envoy, former = running.component, configuration.prepared
        if envoy is None:
            raise KumadpError("Envoy has not been started yet")
        notes, binary, version = await self._take_settings()
        prepared, relaying = former, configuration.relaying
        if isinstance(self._source, KumaSource):
            fetched, configuration.fetched = configuration.fetched, None
            self._files += 1
            file = bootstrap_file(self._files)
            prepared = await self._source.make(fetched or await self._fetch(self._source, notes), file)
        try:
            outcome = await self._replace(envoy, prepared, binary, why)
        except KumadpError:
            if relaying is not None:
                relaying.go_back(former)
            if prepared is not former:
                await asyncio.to_thread(prepared.config_path.unlink, missing_ok=True)
            raise
        await running.ran(prepared, binary)
        if former.config_path != prepared.config_path:
            await asyncio.to_thread(former.config_path.unlink, missing_ok=True)
        self._run.status.note_version("envoy", version.version)
        if outcome.missing:
            notes.append(f"nothing listens on {', '.join(outcome.missing)} any more")
        if relaying is not None and relaying.renew(prepared):
            notes.append("the control plane is told of the change by a new stream, which it refuses for about 10 s")
        await configuration.renewed(version.version)
        return "; ".join((f"epoch {outcome.epoch} serves after {outcome.seconds:.1f} s", *notes))

    async def _replace(self, envoy: EnvoyComponent, prepared: Prepared, binary: Path, why: str) -> ReloadOutcome:
        """Have an Envoy with this bootstrap in the place of the present one; raises KumadpError with the reason."""
        from kumadp.envoy.reload import Plan

        settings, relaying = self._run.settings, self._configuration.relaying
        if relaying is not None:
            relaying.renew_early(prepared)
            if envoy.export() is not None:
                await self._supplied(relaying)
        envoy.set_reload_times(settings.drain_time, settings.reload_deadline)
        plan = Plan(self._running.command(prepared, binary), prepared.admin, prepared.dynamic)
        outcome = await envoy.reload(why, plan)
        if not outcome.serves:
            raise KumadpError(f"{outcome.reason or outcome.kind.value}; the Envoy that ran serves on")
        return outcome

    async def _supplied(self, relaying: Relaying) -> None:
        """Wait until a new Envoy would be given all at once: while it waits itself, nobody has an admin.

        Right after an adoption the control plane refuses the stream for 10 s, and keys are in no file.
        """
        try:
            async with asyncio.timeout(SUPPLIED_WITHIN):
                await relaying.relay.until_supplied()
        except TimeoutError:
            reason = "the control plane has not sent all that Envoy asks for, and a new Envoy would wait for it"
            raise KumadpError(f"{reason}; the Envoy that ran serves on") from None

    async def _take_settings(self) -> tuple[list[str], Path, EnvoyVersion]:
        """Take what may change while kumadp runs; raises KumadpError where what is there now is wrong."""
        from kumadp.envoy.binary import find_envoy
        from kumadp.envoy.version import envoy_version

        run = self._run
        settings, resource = await asyncio.to_thread(self._reread)
        client = self._source.client if isinstance(self._source, KumaSource) else None
        known = client.resource if client is not None else None
        if resource is not None and known is not None and (resource.mesh, resource.name) != (known.mesh, known.name):
            raise KumadpError("the Dataplane has another mesh or name: restart kumadp for it")
        binary = await asyncio.to_thread(find_envoy, settings.binary_path)
        version = await envoy_version(binary, run.children_environment)
        run.settings, others = reloaded(run.settings, settings)
        if client is not None:
            client.settings = run.settings
            client.resource = resource or known
            client.versions = (version, client.versions[1])
        notes = [f"a restart is required for what changed in {', '.join(others)}"] if others else []
        return notes, binary, version

    async def _fetch(self, source: KumaSource, notes: list[str]) -> Fetched:
        reasons: list[str] = []
        try:
            async with asyncio.timeout(PATIENCE):
                return await source.client.fetch(reasons.append, PATIENCE)
        except (TimeoutError, ControlPlaneUnavailable):
            pass
        present = self._configuration.prepared.fetched
        assert present is not None  # noqa: S101 - a control plane's always has one
        why = f": {reasons[-1]}" if reasons else ""
        notes.append(f"with the bootstrap there is, as the control plane gave none{why}")
        return present
