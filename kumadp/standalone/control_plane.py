"""The embedded control plane as a component: watches the files, checks the applications, keeps Envoy up to date."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    Named = Callable[[Mapping[str, Iterable[str]]], None]

log = logging.getLogger("kumadp.standalone")

# Editors and `cp` write in several steps; what follows within this time is one change.
SETTLE = 0.1
# After this time Envoy is asked again whether it has taken what was written while it was down.
AGAIN = 0.5


@dataclass(frozen=True, slots=True)
class StandaloneSetup:
    """What standalone mode starts with."""

    mesh: Mesh
    bootstrap: Json
    made: GeneratedConfig
    held: XdsFiles


def prepare(mesh: Mesh, directory: Path, dns: DnsListener | None, memory: int = 0) -> StandaloneSetup:
    """Write the first configuration and make the bootstrap, for that ``memory`` (bytes; 0: no limit). May block.

    Raises WorkDirError where the directory cannot be written.
    """
    made = generate(mesh, dns)
    held = XdsFiles(directory)
    with reporting_write_errors(directory):
        make_own_folder(directory)
        held.write(CLUSTERS_FILE, cluster_file(made.clusters))
        held.write(LISTENERS_FILE, listener_file(made))
        for old in directory.glob("*.json"):
            if old.name not in {CLUSTERS_FILE, LISTENERS_FILE}:
                old.unlink()
    return StandaloneSetup(mesh, make_bootstrap(mesh, directory, memory), made, held)


class EmbeddedControlPlane:
    """Follows a Dataplane file or folder. A change that is broken or refused changes nothing and is named.

    ``named`` hears of the names of the mesh and their addresses.
    """

    name = "standalone"

    def __init__(
        self,
        path: Path,
        name: str,
        prepared: StandaloneSetup,
        dns: DnsListener | None,
        admin: EnvoyAdmin,
        named: Named = lambda _names: None,
    ) -> None:
        self._reader = MeshReader(path, name)
        self._mesh, self._made = prepared.mesh, prepared.made
        # What Envoy is known to have taken: where a refused change goes back to.
        self._good = (prepared.mesh, prepared.made)
        self._held = prepared.held
        self._dns = dns
        self._admin = admin
        self._named = named
        self._wake = asyncio.Event()
        self._files_changed = False
        self._unconfirmed = False
        self._watch = FileWatch((path,), self._on_files)
        self._health = HealthWatch(self._wake.set)

    async def run(self, up: Callable[[], None]) -> None:
        """Watch until cancelled."""
        self._remark(self._made, ())
        self._named(dns_names(self._mesh))
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
        timeout = AGAIN if self._unconfirmed else None
        try:
            await asyncio.wait({waking, watching}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()

    async def _confirm_first(self) -> None:
        try:
            await apply(self._made, self._made, self._held, self._admin)
        except UpdateRejected as rejected:
            log.error("some of the configuration is not in force: %s", rejected)
        except (UpdateUnconfirmed, OSError) as error:
            self._note_unconfirmed(error)

    async def _update(self) -> None:
        mesh = self._mesh
        if self._files_changed:
            self._files_changed = False
            self._watch.follow()
            mesh = await self._read() or mesh
        made = await asyncio.to_thread(generate, mesh, self._dns, self._health.unhealthy)
        if clash := clashes(made, (ADMIN_HOST, admin_port(mesh.spec))):
            for told in clash:
                log.error("nothing is changed: %s", told)
            self._again(mesh)
            return
        await self._bring(mesh, made)

    async def _read(self) -> Mesh | None:
        """The mesh as the files have it now, None where they have not changed or cannot be used."""
        try:
            if not await asyncio.to_thread(self._reader.changed):
                return None
            mesh = await asyncio.to_thread(self._reader.read)
        except ResourceError as error:
            for problem in error.problems:
                log.error("nothing is changed: %s", problem)
            return None
        if admin_port(mesh.spec) != admin_port(self._mesh.spec):
            log.error("nothing is changed: %s: changes with a restart only", mesh.where("networking.admin.port"))
            return None
        if mesh.spec.probes != self._mesh.spec.probes:
            log.warning("%s: change with a restart only, the others are served", mesh.where("probes"))
        return mesh

    async def _bring(self, mesh: Mesh, made: GeneratedConfig) -> None:
        before, self._mesh, self._made = self._made, mesh, made
        try:
            changed = await apply(made, before, self._held, self._admin)
        except UpdateRejected as rejected:
            log.error("the change is undone: %s", rejected)
            await self._undo()
            return
        except (UpdateUnconfirmed, OSError) as error:
            self._note_unconfirmed(error)
        else:
            self._unconfirmed = False
            self._good = (mesh, made)
            if changed:
                log.info("configuration changed: %d listeners, %d clusters", len(made.listeners), len(made.clusters))
        self._remark(made, before.notes)
        self._named(dns_names(mesh))
        self._health.follow(checks_of(mesh))

    async def _undo(self) -> None:
        refused_mesh, refused = self._mesh, self._made
        self._mesh, self._made = self._good
        self._unconfirmed = False
        try:
            await apply(self._made, refused, self._held, self._admin)
        except UpdateRejected as rejected:
            log.error("going back did not work either: %s", rejected)
        except (UpdateUnconfirmed, OSError) as error:
            self._note_unconfirmed(error)
        self._again(refused_mesh)

    def _again(self, refused: Mesh) -> None:
        """Follow the mesh that stays, whose health may have changed in the meantime."""
        if refused is not self._mesh:
            self._health.follow(checks_of(self._mesh))
            self._wake.set()

    def _note_unconfirmed(self, error: Exception) -> None:
        if not self._unconfirmed:
            log.warning("the configuration is written, and watched until it is in force: %s", error)
        self._unconfirmed = True

    def _remark(self, made: GeneratedConfig, known: list[str] | tuple[()]) -> None:
        for note in made.notes:
            if note not in known:
                log.warning("%s", note)
