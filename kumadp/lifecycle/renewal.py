"""A reload: settings and Dataplane are read again, the bootstrap is fetched again, a new epoch of Envoy takes over."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

from kumadp.errors import ControlPlaneUnavailable, KumadpError
from kumadp.lifecycle.sources import KumaSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.lifecycle.configuration import Configuration
    from kumadp.lifecycle.context import Run
    from kumadp.lifecycle.kuma import Fetched
    from kumadp.lifecycle.running import Running
    from kumadp.lifecycle.sources import Source
    from kumadp.resources.load import Resource
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.lifecycle")

# How long a reload waits for a control plane that may be away (seconds): then Envoy gets the bootstrap it has.
PATIENCE = 5.0
# Settings that a reload takes: the others are about sockets and files that are there already.
LIVE = frozenset(
    {
        "binary_path",
        "bootstrap_check_interval",
        "ca_cert",
        "ca_cert_file",
        "concurrency",
        "config",
        "cp_address",
        "dataplane",
        "dataplane_file",
        "dataplane_vars",
        "drain_time",
        "envoy_args",
        "envoy_component_log_level",
        "envoy_log_level",
        "max_memory_bytes",
        "on_bootstrap_change",
        "on_control_plane_refusal",
        "reload_deadline",
        "retry_backoff",
        "retry_max_duration",
        "skip_verify",
        "strict_admin",
        "token",
        "token_path",
    }
)


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
        from kumadp.envoy.reload import Plan

        envoy, former = self._running.component, self._configuration.prepared
        if envoy is None:
            raise KumadpError("Envoy has not been started yet")
        notes = await self._take_settings()
        prepared = former
        if isinstance(self._source, KumaSource):
            fetched, self._configuration.fetched = self._configuration.fetched, None
            self._files += 1
            file = f"bootstrap.{self._files}.yaml"
            prepared = await self._source.make(fetched or await self._fetch(self._source, notes), file)
        plan = Plan(self._running.command(prepared), prepared.admin, prepared.dynamic)
        outcome = await envoy.reload(why, plan)
        if not outcome.ok:
            if prepared is not former:
                await asyncio.to_thread(prepared.config_path.unlink, missing_ok=True)
            missing = f"; nothing listens on {', '.join(outcome.missing)} any more" if outcome.missing else ""
            raise KumadpError(f"{outcome.reason or outcome.kind.value}{missing}; the Envoy that ran serves on")
        await self._running.ran(prepared)
        if former.config_path != prepared.config_path:
            await asyncio.to_thread(former.config_path.unlink, missing_ok=True)
        relaying = self._configuration.relaying
        if relaying is not None and relaying.renew(prepared):
            notes.append("the control plane is told of the change by a new stream, which it refuses for about 10 s")
        await self._configuration.renewed()
        return "; ".join((f"epoch {outcome.epoch} serves after {outcome.seconds:.1f} s", *notes))

    async def _take_settings(self) -> list[str]:
        """Take what may change while kumadp runs; raises KumadpError where what is there now is wrong."""
        run = self._run
        settings, resource = await asyncio.to_thread(self._reread)
        client = self._source.client if isinstance(self._source, KumaSource) else None
        known = client.resource if client is not None else None
        if resource is not None and known is not None and (resource.mesh, resource.name) != (known.mesh, known.name):
            raise KumadpError("the Dataplane has another mesh or name: restart kumadp for it")
        before = run.settings
        taken = {name: getattr(settings, name) for name in LIVE}
        others = [
            field.name
            for field in dataclasses.fields(settings)
            if field.name not in LIVE and getattr(settings, field.name) != getattr(before, field.name)
        ]
        run.settings = dataclasses.replace(before, **taken)
        if client is not None:
            client.settings = run.settings
            client.resource = resource or known
        return [f"a restart is required for what changed in {', '.join(others)}"] if others else []

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
