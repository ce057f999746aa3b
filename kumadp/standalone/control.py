"""The embedded control plane as a component: watches the files, checks the applications, keeps Envoy up to date."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kumadp.errors import ResourceError
from kumadp.standalone.apply import LDS, Admin, Files, Rejected, apply, explain
from kumadp.standalone.generate import DnsListener, Generated, generate
from kumadp.standalone.generate import bootstrap as make_bootstrap
from kumadp.standalone.generate import files as file_contents
from kumadp.standalone.health import HealthWatch, checks_of
from kumadp.standalone.mesh import Mesh, admin_port, read_mesh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kumadp.standalone.shapes import Json

log = logging.getLogger("kumadp.standalone")

# Editors and `cp` write in several steps; what follows within this time is one change.
SETTLE = 0.1


@dataclass(frozen=True, slots=True)
class Prepared:
    """What standalone mode starts with."""

    mesh: Mesh
    bootstrap: Json
    made: Generated
    held: Files


def prepare(mesh: Mesh, directory: Path, dns: DnsListener | None) -> Prepared:
    """Write the first configuration and make the bootstrap. May block."""
    directory.mkdir(mode=0o700, exist_ok=True)
    for old in directory.glob("*.json"):
        old.unlink()
    made = generate(mesh, directory, dns)
    held = Files(directory)
    held.write(file_contents(made))
    return Prepared(mesh, make_bootstrap(mesh, directory), made, held)


class StandaloneControl:
    """Follows a Dataplane file or folder. A change that is broken or refused changes nothing and is named."""

    name = "standalone"

    def __init__(self, path: Path, name: str, prepared: Prepared, dns: DnsListener | None, admin: Admin) -> None:
        self._path = path
        self._name = name
        self._mesh = prepared.mesh
        self._good = prepared.made
        self._held = prepared.held
        self._dns = dns
        self._admin = admin
        self._wake = asyncio.Event()
        self._files_changed = False
        self._health = HealthWatch(self._wake.set)

    async def run(self, up: Callable[[], None]) -> None:
        """Watch until cancelled."""
        for note in self._good.notes:
            log.warning("%s", note)
        watching = asyncio.create_task(self._watch(up), name="standalone watch")
        self._health.follow(checks_of(self._mesh))
        try:
            if why := await self._first_rejection():
                log.error("some of the configuration is not in force: %s", why)
            while True:
                waiting = asyncio.ensure_future(self._wake.wait())
                done, _ = await asyncio.wait({waiting, watching}, return_when=asyncio.FIRST_COMPLETED)
                if watching in done:
                    waiting.cancel()
                    watching.result()
                    return
                self._wake.clear()
                if self._files_changed:
                    await asyncio.sleep(SETTLE)
                    self._wake.clear()
                await self._update()
        finally:
            watching.cancel()
            await self._health.close()

    async def _first_rejection(self) -> str:
        try:
            stats = await self._admin.stats(rf"^{LDS}\.update_rejected$")
            return await explain(self._admin, LDS, self._good) if stats.get(f"{LDS}.update_rejected") else ""
        except Exception as error:
            log.debug("the admin did not answer: %s", error)
            return ""

    async def _watch(self, up: Callable[[], None]) -> None:
        from asyncinotify import Inotify, Mask

        folder = self._path if self._path.is_dir() else self._path.parent
        mask = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.CREATE
        with Inotify() as inotify:
            inotify.add_watch(folder, mask)
            up()
            async for _ in inotify:
                self._files_changed = True
                self._wake.set()

    async def _update(self) -> None:
        mesh = self._mesh
        if self._files_changed:
            self._files_changed = False
            try:
                mesh = await asyncio.to_thread(read_mesh, self._path, self._name)
            except ResourceError as error:
                for problem in error.problems:
                    log.error("nothing is changed: %s", problem)
                return
            if admin_port(mesh.spec) != admin_port(self._mesh.spec):
                log.error("nothing is changed: networking.admin.port changes with a restart only")
                return
        made = generate(mesh, self._held.directory, self._dns, self._health.unhealthy)
        try:
            changed = await apply(made, self._held, self._admin)
        except Rejected as rejected:
            log.error("the change is undone: %s", rejected)
            await self._undo()
            return
        except Exception as error:
            log.warning("Envoy could not be asked about the change: %s", str(error) or type(error).__name__)
            changed = True
        self._mesh, self._good = mesh, made
        self._health.follow(checks_of(mesh))
        if changed:
            for note in made.notes:
                log.warning("%s", note)
            log.info("configuration changed: %d listeners, %d clusters", len(made.listeners), len(made.clusters))

    async def _undo(self) -> None:
        try:
            await apply(self._good, self._held, self._admin)
        except Rejected as rejected:
            log.error("going back did not work either: %s", rejected)
        except Exception as error:
            log.warning("Envoy could not be asked: %s", str(error) or type(error).__name__)
