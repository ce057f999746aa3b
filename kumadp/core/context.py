"""What the parts of one run share."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.core.component import Stack
from kumadp.core.events import PartEnded, Rejected
from kumadp.core.phases import Phase
from kumadp.core.previous import Previous
from kumadp.core.status import Status
from kumadp.errors import WorkDirError
from kumadp.host.environment import child_environment, find_container_sign, resolve_on_parent_death
from kumadp.host.log.secrets import redact
from kumadp.host.state_dir import is_named, open_state_dir, state_dir_path
from kumadp.host.work_dir import OUTPUT_SUFFIX
from kumadp.process.child import Command, OnParentDeath
from kumadp.process.crash_records import CrashRecords
from kumadp.settings.model import secret_variables

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from kumadp.bootstrap.generation import Generation
    from kumadp.bootstrap.prepare import Prepared
    from kumadp.core.events import Event
    from kumadp.core.part import Part
    from kumadp.errors import KumadpError
    from kumadp.host.work_dir import WorkDir
    from kumadp.resources.resource import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.daemon")


class Inputs(Struct, frozen=True):
    """What a run is started with.

    ``transparent``: what is redirected on this host, if settings configure it. ``config`` is the settings file,
    ``command_line`` that of the application that kumadp is to run. ``origins``: where each setting is from, by field.
    """

    settings: Settings
    resource: Resource | None
    environ: Mapping[str, str]
    standalone: bool = False
    transparent: TransparentProxy | None = None
    config: str = ""
    command_line: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)


class Context:
    """Settings, Dataplane, work directory, status, components and events of one run.

    ``events`` is the run loop's queue. ``bootstrap`` is what Envoy runs with, ``previous`` what an earlier kumadp left.
    ``generation`` is that of the control plane which answered last, None before there is a bootstrap and in standalone
    mode.
    ``serving_begun`` is set once Envoy is being started: from then on an empty list of reasons means READY.
    """

    work: WorkDir
    bootstrap: Prepared

    def __init__(self, inputs: Inputs) -> None:
        self.settings = inputs.settings
        self.resource = inputs.resource
        self.environ = inputs.environ
        self.standalone = inputs.standalone
        self.transparent = inputs.transparent
        self.config = inputs.config
        self.command_line = inputs.command_line
        self.origins = inputs.origins
        resource, settings = inputs.resource, inputs.settings
        self.name = resource.name if resource is not None else settings.name
        self.mesh = resource.mesh if resource is not None else settings.mesh
        self.generation: Generation | None = None
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.parts: list[Part] = []
        self.status = Status(self.name, "standalone" if inputs.standalone else "control plane", self.mesh)
        if not inputs.standalone:
            self.status.add_section(lambda: {"control_plane": redact(self.settings.cp_address)})
        self.crashes = CrashRecords(
            self._crash_folder, self._facts_of, lambda reason: self.status.set_warning("crash records", reason)
        )
        self.status.add_section(lambda: {"crashes": self.crashes.status()})
        self.stack = Stack(lambda name, error: self.post(PartEnded(name, error)))
        self.previous = Previous()
        self.serving_begun = asyncio.Event()
        self.keeps_children = (
            resolve_on_parent_death(settings.on_parent_death, find_container_sign(self.environ)) == "keep"
        )
        self.children_environment: Mapping[str, str] = child_environment(self.environ, secret_variables())
        self._on_children_changed: list[Callable[[], None]] = []

    def post(self, event: Event) -> None:
        """Put an event into the run loop's queue; to be called on the event loop."""
        self.events.put_nowait(event)

    def reject(self, error: KumadpError) -> None:
        """End the run with this rejection of the control plane, unless the settings want Envoy to serve on."""
        if self.settings.on_control_plane_refusal != "serve":
            self.post(Rejected(error))

    async def use_bootstrap(self, prepared: Prepared) -> None:
        """Have every part follow the bootstrap that Envoy runs with from now on."""
        self.bootstrap = prepared
        for part in self.parts:
            await part.on_bootstrap(prepared)

    def note_generation(self, generation: Generation) -> None:
        """Have every part adapt to the control plane's generation, unless it is the one that is known."""
        former, self.generation = self.generation, generation
        if former is generation:
            return
        if former is not None:
            log.warning("the control plane was of Kuma %d, and is of Kuma %d now", former, generation)
        self.status.facts["control_plane_generation"] = int(generation)
        for part in self.parts:
            part.on_generation(generation)

    def on_children_changed(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called each time that a part has other children."""
        self._on_children_changed.append(callback)

    def children_changed(self) -> None:
        """Notify those that record children."""
        for callback in self._on_children_changed:
            callback()

    def use_work_dir(self, work: WorkDir) -> None:
        """Work in this directory.

        Raises WorkDirError if the directory is temporary and the settings want children kept: the next run would not
        find them, and they hold ports. A program that was re-executed keeps the directory that it had.
        """
        self.work = work
        if work.temporary and self.settings.on_parent_death == "keep" and self.previous.work is None:
            raise WorkDirError(
                "--on-parent-death=keep: the work directory is temporary, so no later kumadp could adopt its processes",
                "name one with --work-dir",
            )
        self.keeps_children = self.keeps_children and not work.temporary

    def command(
        self, name: str, argv: tuple[str, ...], *, lock_death_signal: bool = False
    ) -> Callable[[], Awaitable[Command]]:
        """Return what makes a child's command at each of its starts; ``lock_death_signal`` as in `Command`."""
        fifo = self.work.path / (name + OUTPUT_SUFFIX) if self.keeps_children else None
        fate: OnParentDeath = "keep" if self.keeps_children else "kill"
        command = Command(
            argv,
            name,
            self.children_environment,
            fate,
            fifo,
            lock_death_signal=lock_death_signal,
            on_death=self.crashes.note,
        )

        async def make() -> Command:
            return command

        return make

    async def check_state_dir(self) -> None:
        """Raise WorkDirError if the state directory that was named cannot be used, whether or not it is needed."""
        if is_named(self.settings.state_dir, self.environ):
            await asyncio.to_thread(open_state_dir, self.name, self.settings.state_dir, self.environ)

    def settle(self) -> None:
        """Move to READY if nothing prevents it."""
        if self.status.phase is Phase.STARTING and not self.status.reasons and self.serving_begun.is_set():
            self.status.move(Phase.READY, "Envoy is LIVE with its listeners")

    def _crash_folder(self, make: bool) -> Path | None:
        """Return the folder of crash records: the state directory, else the work directory. May block."""
        settings = self.settings
        if not make:
            return state_dir_path(self.name, settings.state_dir, self.environ)
        return open_state_dir(self.name, settings.state_dir, self.environ) or self.work.path

    def _facts_of(self, pid: int) -> Mapping[str, object]:
        facts: dict[str, object] = {}
        for part in self.parts:
            facts.update(part.child_facts(pid))
        return {**facts, "versions": self.status.versions}
