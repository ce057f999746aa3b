"""The embedded control plane as a component: watches files, checks applications, keeps Envoy up to date."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.errors import ResourceError
from kumadp.host.file_watch import FileWatch
from kumadp.host.private_file import make_own_folder
from kumadp.host.work_dir import CLUSTERS_FILE, LISTENERS_FILE, reporting_write_errors
from kumadp.standalone.generated_config import clashes
from kumadp.standalone.generator import bootstrap as make_bootstrap
from kumadp.standalone.generator import cluster_file, generate, listener_file
from kumadp.standalone.health import HealthWatch, checks_of
from kumadp.standalone.mesh import ADMIN_HOST, Mesh, MeshReader, admin_port
from kumadp.standalone.system_listeners import dns_names
from kumadp.standalone.xds_files import XdsFiles
from kumadp.standalone.xds_update import EnvoyAdmin, UpdateRejected, UpdateUnconfirmed, apply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from kumadp.standalone.config_fragments import Json
    from kumadp.standalone.generated_config import DnsListener, GeneratedConfig

    OnNames = Callable[[Mapping[str, Iterable[str]]], None]

log = logging.getLogger("kumadp.standalone")

# Editors and `cp` write in several steps; changes within this time are one (seconds).
SETTLE = 0.1
# How often Envoy is queried until it has applied files that were written while it was down (seconds).
RETRY_AFTER = 0.5


class StandaloneSetup(Struct, frozen=True):
    """The first configuration of standalone mode."""

    mesh: Mesh
    bootstrap: Json
    config: GeneratedConfig
    files: XdsFiles


def prepare(mesh: Mesh, directory: Path, dns: DnsListener | None, memory: int = 0) -> StandaloneSetup:
    """Write the first configuration and generate the bootstrap. May block.

    ``memory`` is a limit in bytes, 0 for none. Raises WorkDirError if the directory cannot be written.
    """
    config = generate(mesh, dns)
    files = XdsFiles(directory)
    with reporting_write_errors(directory):
        make_own_folder(directory)
        files.write(CLUSTERS_FILE, cluster_file(config.clusters))
        files.write(LISTENERS_FILE, listener_file(config))
        for old in directory.glob("*.json"):
            if old.name not in {CLUSTERS_FILE, LISTENERS_FILE}:
                old.unlink()
    return StandaloneSetup(mesh, make_bootstrap(mesh, directory, memory), config, files)


class EmbeddedControlPlane:
    """Follows a Dataplane file or folder. A change that is invalid or rejected by Envoy is logged and ignored.

    ``setup`` is the configuration that is in force. ``on_names`` is called with the names of the mesh and their
    addresses.
    """

    name = "standalone"

    def __init__(
        self,
        path: Path,
        name: str,
        setup: StandaloneSetup,
        dns: DnsListener | None,
        admin: EnvoyAdmin,
        on_names: OnNames = lambda _names: None,
    ) -> None:
        self._reader = MeshReader(path, name)
        self._mesh, self._config = setup.mesh, setup.config
        # The last configuration that Envoy has applied, restored after a rejected change.
        self._good = (setup.mesh, setup.config)
        self._xds_files = setup.files
        self._dns = dns
        self._admin = admin
        self._on_names = on_names
        self._wake = asyncio.Event()
        self._files_changed = False
        self._unconfirmed = False
        self._watch = FileWatch((path,), self._on_files)
        self._health = HealthWatch(self._wake.set)

    async def run(self, up: Callable[[], None]) -> None:
        """Watch until cancelled."""
        self._log_notes(self._config, ())
        self._on_names(dns_names(self._mesh))
        watching = asyncio.create_task(self._watch.run(up), name="standalone watch")
        try:
            await self._confirm_first()
            self._health.follow(checks_of(self._mesh))
            while not watching.done():
                await self._sleep(watching)
                if self._files_changed:
                    await asyncio.sleep(SETTLE)
                self._wake.clear()
                await self._update()
            watching.result()
        finally:
            watching.cancel()
            await self._health.close()

    def _on_files(self) -> None:
        self._files_changed = True
        self._wake.set()

    async def _sleep(self, watching: asyncio.Task[None]) -> None:
        waking = asyncio.create_task(self._wake.wait())
        timeout = RETRY_AFTER if self._unconfirmed else None
        try:
            await asyncio.wait({waking, watching}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()

    async def _confirm_first(self) -> None:
        try:
            await apply(self._config, self._config, self._xds_files, self._admin)
        except UpdateRejected as rejected:
            log.error("part of the configuration was rejected: %s", rejected)
        except (UpdateUnconfirmed, OSError) as error:
            self._note_unconfirmed(error)

    async def _update(self) -> None:
        mesh = self._mesh
        if self._files_changed:
            self._files_changed = False
            self._watch.follow()
            mesh = await self._read() or mesh
        config = await asyncio.to_thread(generate, mesh, self._dns, self._health.unhealthy)
        if problems := clashes(config, (ADMIN_HOST, admin_port(mesh.spec))):
            for problem in problems:
                log.error("change ignored: %s", problem)
            self._follow_health_again(mesh)
            return
        await self._apply(mesh, config)

    async def _read(self) -> Mesh | None:
        """Return the mesh as the files have it now, None if they have not changed or cannot be used."""
        try:
            if not await asyncio.to_thread(self._reader.changed):
                return None
            mesh = await asyncio.to_thread(self._reader.read)
        except ResourceError as error:
            for problem in error.problems:
                log.error("change ignored: %s", problem)
            return None
        if admin_port(mesh.spec) != admin_port(self._mesh.spec):
            log.error("change ignored: %s: needs a restart", mesh.where("networking.admin.port"))
            return None
        if mesh.spec.probes != self._mesh.spec.probes:
            log.warning("%s: changes need a restart, all other changes are applied", mesh.where("probes"))
        return mesh

    async def _apply(self, mesh: Mesh, config: GeneratedConfig) -> None:
        previous, self._mesh, self._config = self._config, mesh, config
        try:
            changed = await apply(config, previous, self._xds_files, self._admin)
        except UpdateRejected as rejected:
            log.error("change rejected, restoring the previous configuration: %s", rejected)
            await self._restore()
            return
        except (UpdateUnconfirmed, OSError) as error:
            self._note_unconfirmed(error)
        else:
            self._unconfirmed = False
            self._good = (mesh, config)
            if changed:
                log.info(
                    "configuration changed: %d listeners, %d clusters", len(config.listeners), len(config.clusters)
                )
        self._log_notes(config, previous.notes)
        self._on_names(dns_names(mesh))
        self._health.follow(checks_of(mesh))

    async def _restore(self) -> None:
        rejected_mesh, rejected_config = self._mesh, self._config
        self._mesh, self._config = self._good
        self._unconfirmed = False
        try:
            await apply(self._config, rejected_config, self._xds_files, self._admin)
        except UpdateRejected as rejected:
            log.error("the previous configuration was rejected too: %s", rejected)
        except (UpdateUnconfirmed, OSError) as error:
            self._note_unconfirmed(error)
        self._follow_health_again(rejected_mesh)

    def _follow_health_again(self, rejected: Mesh) -> None:
        """Check the mesh that stays in force again; its health may have changed while another one was checked."""
        if rejected is not self._mesh:
            self._health.follow(checks_of(self._mesh))
            self._wake.set()

    def _note_unconfirmed(self, error: Exception) -> None:
        if not self._unconfirmed:
            log.warning("the configuration is written but not applied yet, waiting for Envoy: %s", error)
        self._unconfirmed = True

    def _log_notes(self, config: GeneratedConfig, logged: list[str] | tuple[()]) -> None:
        for note in config.notes:
            if note not in logged:
                log.warning("%s", note)
