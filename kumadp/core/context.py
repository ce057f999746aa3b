"""What the parts of one run share."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from kumadp.core.component import Stack
from kumadp.core.phases import Phase
from kumadp.core.status import Status
from kumadp.daemon.adoption import Before
from kumadp.daemon.log_levels import LogLevels
from kumadp.daemon.loop import PartEnded
from kumadp.errors import WorkDirError
from kumadp.host.environment import child_environment, find_container_sign, resolve_on_parent_death
from kumadp.host.log.secrets import redact, register
from kumadp.host.state_dir import is_named, open_state_dir, state_dir_path
from kumadp.host.work_dir import OUTPUT_SUFFIX
from kumadp.metrics.own_page import Measuring
from kumadp.otel.environment import read_environment
from kumadp.process.child import Command, OnParentDeath
from kumadp.process.crash_records import CrashRecords
from kumadp.settings.model import secret_variables

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from pathlib import Path

    from kumadp.accesslog.component import AccessLogs
    from kumadp.daemon.chosen_ports import ChosenPorts
    from kumadp.daemon.loop import Event
    from kumadp.dns.resolver.table import HandedNames
    from kumadp.host.work_dir import WorkDir
    from kumadp.resources.load import Resource
    from kumadp.resources.transparent_proxy import TransparentProxy
    from kumadp.settings.model import Settings
    from kumadp.standalone.mesh import Mesh

log = logging.getLogger("kumadp.daemon")


class Run:
    """Settings, Dataplane, status and the stack of components of one run; ``post`` reaches the run loop.

    ``transparent`` is what is redirected on this host, where settings say so. ``before`` is what a kumadp before this
    one left. ``envoy_up`` is set once there is an Envoy component. ``config`` is the settings file, ``command_line``
    that of the application where we are to run it.
    """

    work: WorkDir

    def __init__(
        self,
        settings: Settings,
        resource: Resource | None,
        mesh: Mesh | None,
        environ: Mapping[str, str],
        transparent: TransparentProxy | None = None,
        config: str = "",
        command_line: tuple[str, ...] = (),
    ) -> None:
        self.settings = settings
        self.resource = resource
        self.mesh = mesh
        self.transparent = transparent
        self.config = config
        self.command_line = command_line
        self.environ = environ
        self.name = resource.name if resource is not None else settings.name
        self.mesh_name = resource.mesh if resource is not None else settings.mesh
        self.status = Status(self.name, "standalone" if mesh is not None else "control plane", self.mesh_name)
        if mesh is None:
            self.status.asked["control_plane"] = lambda: redact(self.settings.cp_address)
        self.levels = LogLevels(lambda: self.settings)
        self.epoch_of: Callable[[int], int | None] = lambda _pid: None
        """The epoch of an Envoy by its pid."""
        self.crashes = CrashRecords(
            self._crash_folder, self._known_of, lambda reason: self.status.set_warning("crash records", reason)
        )
        self.status.asked["crashes"] = self.crashes.status
        self.measuring = Measuring(self.status.snapshot)
        self.stack = Stack(lambda name, error: self.post(PartEnded(name, error)))
        self.post: Callable[[Event], None] = lambda _event: None
        self.named: Callable[[Mapping[str, Iterable[str]]], None] = lambda _names: None
        """Hears of the names of standalone mode and their addresses."""
        self.names_left: Callable[[], HandedNames | None] = lambda: None
        """The names that the embedded resolver leaves to the program that follows."""
        self.before = Before()
        self.access_logs: AccessLogs | None = None
        self.chosen: ChosenPorts | None = None
        self.envoy_up = asyncio.Event()
        self.keeps = resolve_on_parent_death(settings.on_parent_death, find_container_sign(environ)) == "keep"
        self.children_environment: Mapping[str, str] = child_environment(environ, secret_variables())
        for secret in read_environment(environ).secrets():
            register(secret)

    def take(self, work: WorkDir) -> None:
        """Work in this directory. The next run would not find what lives on in a temporary one, which holds ports.

        Raises WorkDirError where the settings want what runs in it kept, unless a program before us went on with that.
        """
        self.work = work
        if work.temporary and self.settings.on_parent_death == "keep" and self.before.work is None:
            raise WorkDirError(
                "--on-parent-death=keep: the work directory is temporary, so no later kumadp could adopt its processes",
                "name one with --work-dir",
            )
        self.keeps = self.keeps and not work.temporary

    def choose_ports(self) -> None:
        """Have real ports where the settings say 0; raises SettingsError, PortsTaken."""
        from kumadp.daemon.chosen_ports import ChosenPorts

        self.chosen = ChosenPorts(self.settings, standalone=self.mesh is not None, before=self.before.ports)
        self.settings, self.resource = self.chosen.settle(self.settings, self.resource)

    def command(self, name: str, argv: tuple[str, ...]) -> Callable[[], Awaitable[Command]]:
        """What makes a child's command, asked at each start."""
        fifo = self.work.path / (name + OUTPUT_SUFFIX) if self.keeps else None
        fate: OnParentDeath = "keep" if self.keeps else "kill"
        hold = name == "envoy"
        command = Command(
            argv, name, self.children_environment, fate, fifo, lock_death_signal=hold, on_death=self.crashes.note
        )

        async def make() -> Command:
            return command

        return make

    async def check_state_dir(self) -> None:
        """Raise WorkDirError where the state directory that was named cannot be used, whether or not it is needed."""
        if is_named(self.settings.state_dir, self.environ):
            await asyncio.to_thread(open_state_dir, self.name, self.settings.state_dir, self.environ)

    def _crash_folder(self, make: bool) -> Path | None:
        """Where crash records go: the state directory, else the work directory. May block."""
        settings = self.settings
        if not make:
            return state_dir_path(self.name, settings.state_dir, self.environ)
        return open_state_dir(self.name, settings.state_dir, self.environ) or self.work.path

    def _known_of(self, pid: int) -> Mapping[str, object]:
        return {"epoch": self.epoch_of(pid), "versions": self.status.versions}

    def settle(self) -> None:
        """READY once nothing holds it back."""
        if self.status.phase is Phase.STARTING and not self.status.reasons and self.envoy_up.is_set():
            self.status.move(Phase.READY, "Envoy is LIVE with its listeners")
