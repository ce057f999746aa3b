"""Where Envoy's configuration comes from in this run: the source, the relay, the copy on disk, the watch."""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from typing import TYPE_CHECKING

from kumadp.controlplane.bootstrap_client import Fetched, KumaClient
from kumadp.controlplane.token_expiry import TokenWatch
from kumadp.daemon.control import relay_socket_path
from kumadp.daemon.loop import Asked, Refused
from kumadp.daemon.sources import KumaSource, StandaloneSource
from kumadp.host.facts import memory_limit
from kumadp.otel.offer import pipe_offer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kumadp.controlplane.bootstrap_watch import BootstrapWatch
    from kumadp.core.context import Run
    from kumadp.daemon.file_changes import ChangedFiles
    from kumadp.daemon.ports import DnsPlan
    from kumadp.daemon.sources import Prepared, Source
    from kumadp.envoy.version import EnvoyVersion
    from kumadp.errors import ControlPlaneRefused
    from kumadp.host.net.ports import BindAddress
    from kumadp.relay.last_good import Binding, LastGood, LastGoodContent, LastGoodStore
    from kumadp.relay.part import Relaying

log = logging.getLogger("kumadp.daemon")


class Configuration:
    """Makes the source and, with a control plane, the relay. ``prepared`` is what Envoy runs with now."""

    prepared: Prepared

    def __init__(self, run: Run) -> None:
        self._run = run
        self.relaying: Relaying | None = None
        self.fetched: Fetched | None = None
        """A bootstrap that was fetched and is to be taken by the next reload."""
        self._store: LastGoodStore | None = None
        self._last_good: LastGood | None = None
        self._watch: BootstrapWatch | None = None
        self.files: ChangedFiles | None = None

    async def make_source(
        self, versions: tuple[EnvoyVersion, str], dns: DnsPlan | None, own: list[BindAddress], *, serves_probes: bool
    ) -> Source:
        """The source by the settings; raises WorkDirError."""
        run = self._run
        settings = run.settings
        if run.mesh is not None:
            return StandaloneSource(settings, run.mesh, run.work, own, dns, lambda names: run.named(names))
        client = KumaClient(
            settings,
            run.resource,
            run.work,
            dns,
            versions,
            serves_probes=serves_probes,
            transparent=run.transparent,
            otel_env=pipe_offer(settings, run.environ),
        )
        run.status.counters["bootstrap"] = client.counted
        tokens, loop = TokenWatch(run.status, client.read_token), asyncio.get_running_loop()
        client.heard_token = lambda token: loop.call_soon_threadsafe(tokens.heard, token)
        if settings.xds_transport_variant == "DELTA_GRPC":
            log.info("DELTA_GRPC is not announced: kumadp has the control plane speak state of the world")
        relay: Path | None = None
        if settings.xds_relay == "on":
            relay = relay_socket_path(run.name, run.work.path, run.environ)
            # In 40 ms, while the control plane is asked.
            self._module = asyncio.create_task(asyncio.to_thread(import_module, "kumadp.relay.part"))
            self._last_good = await self._read_last_good(versions[0].version)
        found = self._last_good
        kept = Fetched(found.bootstrap, found.corefile_template, found.confirmed) if found is not None else None
        return KumaSource(
            client, run.work, own, run.status, relay_path=relay, last_good=kept, hand_over=run.before.source
        )

    async def _read_last_good(self, envoy_version: str) -> LastGood | None:
        """What is on disk of the last run, and the store for what comes; None where nothing is kept."""
        from kumadp.host.state_dir import open_state_dir
        from kumadp.relay.last_good import LastGoodStore

        run = self._run
        settings = run.settings
        if settings.last_good == "off":
            return None
        directory = await asyncio.to_thread(open_state_dir, run.name, settings.state_dir, run.environ)
        if directory is None:
            log.info("no state directory: the last good configuration is not kept")
            return None
        binding = self._binding(envoy_version)
        self._store = LastGoodStore(
            directory,
            binding,
            self._content,
            max_age=settings.last_good_max_age,
            on_failure=lambda reason: run.status.set_warning("last good configuration", reason),
        )
        return await self._store.load()

    def _binding(self, envoy_version: str) -> Binding:
        from kumadp.relay.last_good import Binding

        run = self._run
        return Binding(run.mesh_name, run.name, run.settings.cp_address, envoy_version)

    def _content(self) -> LastGoodContent | None:
        return self.relaying.content() if self.relaying is not None else None

    async def start_relay(self, source: Source, epoch_of: Callable[[int], int]) -> None:
        """Start the relay, where there is one: before Envoy, which asks it for everything."""
        run = self._run
        if not isinstance(source, KumaSource) or source.relay_path is None or self.prepared.upstream is None:
            return
        relaying = (await self._module).Relaying
        memory, earlier = run.before.memory, None
        if memory is None and self._last_good is not None:
            stale = source.later is not None or run.before.envoy is not None
            memory, earlier = (self._last_good.memory, None) if stale else (None, self._last_good)
        limit = run.settings.max_memory_bytes or await asyncio.to_thread(memory_limit)
        self.relaying = relaying(
            source.relay_path,
            source.client,
            self.prepared,
            run.status,
            epoch_of=epoch_of,
            refused=self._refused,
            opened=self._opened,
            memory=memory,
            earlier=earlier,
            broken_at=run.before.left_at,
            stale="stale_since" in run.status.facts,
            memory_limit=limit,
        )
        if self._store is not None:
            self.relaying.keep_in(self._store)
        if (left := run.before.envoy) is not None:
            # It serves already: what it takes again is no word of a fresh Envoy.
            self.relaying.relay.envoy_started(left.state.generation, left.current.pid)
            self.relaying.relay.envoy_live(left.state.generation)
        await run.stack.enter(self.relaying.relay)

    def start_watch(self, source: Source) -> None:
        """Look now and then whether the bootstrap has changed, and see files that change."""
        from kumadp.controlplane.bootstrap_watch import BootstrapWatch
        from kumadp.daemon.file_changes import ChangedFiles

        self.files = ChangedFiles(self._run, source.client if isinstance(source, KumaSource) else None)
        self._run.stack.start(self.files)
        if not isinstance(source, KumaSource):
            return
        self._watch = BootstrapWatch(
            source,
            self._run.status,
            interval=lambda: self._run.settings.bootstrap_check_interval,
            current=self._current,
            changed=self._changed,
            fresh=self._fresh,
            refused=self._refused,
        )
        self._run.stack.start(self._watch)

    def _current(self) -> Fetched:
        assert self.prepared.fetched is not None  # noqa: S101 - a control plane's always has one
        return self.prepared.fetched

    def _changed(self, found: Fetched, reasons: tuple[str, ...], first: bool) -> None:
        run = self._run
        if not first and run.settings.on_bootstrap_change == "report":
            run.status.set_warning("bootstrap", "it has changed, a restart is required: " + "; ".join(reasons))
            return
        self.fetched = found
        run.post(Asked("reload", "the bootstrap has changed"))

    async def renewed(self, envoy_version: str) -> None:
        """Envoy of this version runs with a bootstrap that was just fetched, or with the one there is."""
        if self._store is not None:
            self._store.bind(self._binding(envoy_version))
        if self._watch is not None:
            self._watch.start_anew()
        self._run.status.facts.pop("restart_required", None)
        self._run.status.set_warning("bootstrap", "")
        await self._fresh()

    async def _fresh(self) -> None:
        """The control plane stands by what Envoy runs with."""
        if self._run.status.facts.pop("stale_since", None) is not None:
            log.info("the control plane is back: the configuration is its present one")
        self._run.status.set_warning("configuration", "")
        if self._store is not None:
            await self._store.confirm()

    def _opened(self) -> None:
        if self._watch is not None:
            self._watch.wake()

    def _refused(self, error: ControlPlaneRefused) -> None:
        # Who says so has told the concern already.
        if self._run.settings.on_control_plane_refusal != "serve":
            self._run.post(Refused(error))

    async def written(self) -> None:
        """Write what is not on disk yet; more may follow."""
        if self._store is not None:
            await self._store.flush()

    async def close(self) -> None:
        """Write what is not on disk yet."""
        if self._store is not None:
            await self._store.close()
