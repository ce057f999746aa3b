"""The relay in a run: its socket, the last good configuration on disk, and the session with the control plane.

Light to import: the session is imported in a thread while the control plane is queried for the bootstrap.
"""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

import msgspec

from kumadp.bootstrap.prepare import Fetched
from kumadp.core.epochs import EpochObserver
from kumadp.core.part import Handed, Part
from kumadp.errors import KumadpError
from kumadp.host.facts import memory_limit
from kumadp.host.net.socket_paths import relay_socket_path
from kumadp.host.state_dir import open_state_dir
from kumadp.relay.snapshot import RelaySnapshot  # noqa: TC001 - msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.bootstrap.prepare import Prepared
    from kumadp.core.context import Context
    from kumadp.core.previous import Previous
    from kumadp.errors import ControlPlaneRefused
    from kumadp.relay.admin_fingerprint import AdminWatch
    from kumadp.relay.last_good import Binding, LastGood, LastGoodContent, LastGoodStore
    from kumadp.relay.session import ControlPlaneAccess, RelaySession
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.relay")

# How long a reload waits until memory has all that a new Envoy requests (seconds): longer than a stream is rejected.
SUPPLIED_WITHIN = 20.0


class Epochs(Protocol):
    """The Envoys that connect."""

    @property
    def adopted(self) -> tuple[int, int] | None:
        """The generation and pid of an Envoy that is adopted, None if there is none."""

    @property
    def admin_address(self) -> AdminAddress | None:
        """Where the admin of the Envoy that serves listens."""

    def epoch_of(self, pid: int) -> int:
        """Return the epoch of an Envoy by its pid, 0 if it is not known."""

    async def get_admin(self, path: str) -> bytes | None:
        """Return what the admin of the Envoy that serves answers to a GET; None if there is no usable answer."""

    def recheck_admin(self, listeners: Collection[str] | None) -> None:
        """Have the proof that the admin is private repeated for these listeners, None: for all."""


class RelaySection(msgspec.Struct, frozen=True):
    """What is handed over. It has keys: never to disk."""

    memory: RelaySnapshot


class RelayPart(Part, EpochObserver):
    """Owns the session, and follows Envoy's epochs.

    ``access`` connects to the control plane.
    """

    name = "relay"

    def __init__(self, context: Context, access: ControlPlaneAccess) -> None:
        self._context = context
        self._access = access
        self._epochs: Epochs | None = None
        self._memory: RelaySnapshot | None = None
        self._store: LastGoodStore | None = None
        self._last_good: LastGood | None = None
        self._admin_watch: AdminWatch | None = None
        self._on_opened: list[Callable[[], None]] = []
        self._on_accepted: list[Callable[[str], None]] = []
        self.path: Path | None = None
        """The socket that Envoy connects to; None: Envoy connects to the control plane itself."""
        self.session: RelaySession | None = None
        self._module: asyncio.Task[ModuleType] | None = None

    @property
    def active(self) -> bool:
        """Whether Envoy gets its configuration from the relay."""
        return self.session is not None

    def connect(self, epochs: Epochs) -> None:
        """Serve these Envoys."""
        self._epochs = epochs

    def on_stream_opened(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called each time that the control plane has accepted the stream."""
        self._on_opened.append(callback)

    def on_configuration_accepted(self, callback: Callable[[str], None]) -> None:
        """Have ``callback`` called with the type of each response that Envoy has accepted."""
        self._on_accepted.append(callback)

    @classmethod
    def section_type(cls) -> type[msgspec.Struct]:
        """Return the type of its section of a handover."""
        return RelaySection

    def adopt(self, previous: Previous) -> None:
        """Take the memory that was handed over."""
        section = previous.section(self.name, RelaySection)
        self._memory = section.memory if section is not None else None

    def preload(self) -> asyncio.Task[ModuleType]:
        """Import the session in a thread, in 40 ms: while the control plane is waited for."""
        if self._module is None:
            self._module = asyncio.create_task(asyncio.to_thread(import_module, "kumadp.relay.session"))
        return self._module

    async def load(self, envoy_version: str) -> Fetched | None:
        """Choose the socket, and return the bootstrap of the last good configuration on disk, if any.

        Raises WorkDirError.
        """
        context = self._context
        if context.settings.xds_relay != "on":
            return None
        self.path = relay_socket_path(context.name, context.work.path, context.environ)
        self._last_good = last = await self._read_last_good(envoy_version)
        if last is None:
            return None
        return Fetched(last.bootstrap, last.corefile_template, last.confirmed, dataplane=last.dataplane)

    async def _read_last_good(self, envoy_version: str) -> LastGood | None:
        """Return what the last run kept on disk, and make the store for what comes; None if nothing is kept."""
        context, settings = self._context, self._context.settings
        if settings.last_good == "off":
            return None
        from kumadp.relay.last_good import LastGoodStore

        directory = await asyncio.to_thread(open_state_dir, context.name, settings.state_dir, context.environ)
        if directory is None:
            log.info("no state directory: the last good configuration is not kept")
            return None
        self._store = LastGoodStore(
            directory,
            self._binding(envoy_version),
            self._content,
            max_age=settings.last_good_max_age,
            on_failure=lambda reason: context.status.set_warning("last good configuration", reason),
        )
        return await self._store.load()

    def _binding(self, envoy_version: str) -> Binding:
        from kumadp.relay.last_good import Binding

        context = self._context
        return Binding(context.mesh, context.name, context.settings.cp_address, envoy_version)

    def _content(self) -> LastGoodContent | None:
        return self.session.content() if self.session is not None else None

    async def start(self) -> None:
        """Start the relay, if Envoy is to use one: before Envoy, which requests everything from it."""
        context = self._context
        if self.path is None or context.bootstrap.upstream is None or self._epochs is None:
            return
        module = await self.preload()
        memory, earlier = self._memory, None
        stale = "stale_since" in context.status.facts
        if memory is None and self._last_good is not None:
            at_once = self._access.pending or self._epochs.adopted is not None
            memory, earlier = (self._last_good.memory, None) if at_once else (None, self._last_good)
        limit = context.settings.max_memory_bytes or await asyncio.to_thread(memory_limit)
        drain_time = context.settings.drain_time
        resumption = module.Resumption(memory, earlier, stale, context.previous.left_at)
        options = module.SessionOptions(
            self.path, context.status, self._epochs.epoch_of, resumption, limit, drain_time, self._epochs.get_admin
        )
        self.session = module.RelaySession(options, self._access, context.bootstrap, self)
        if self._store is not None:
            self.session.keep_in(self._store)
        if (adopted := self._epochs.adopted) is not None:
            # It serves already: what it accepts again is not the word of a new Envoy.
            self.session.relay.envoy_started(*adopted)
            self.session.relay.envoy_live(adopted[0])
        await context.stack.enter(self.session.relay)

    def hand_over(self) -> Handed | None:
        """Return the relay's memory."""
        return Handed(RelaySection(self.session.relay.snapshot())) if self.session is not None else None

    def status(self) -> Mapping[str, object]:
        """Return the sections ``relay`` and ``last_good``."""
        sections: dict[str, object] = {}
        if self.session is not None:
            sections["relay"] = self.session.relay.status()
            if self._store is not None:
                sections["last_good"] = self._store.status()
        return sections

    async def close(self) -> None:
        """Write what is not on disk yet."""
        if self._store is not None:
            await self._store.close()

    async def flush(self) -> None:
        """Return once what is to be kept is on disk; more may follow."""
        if self._store is not None:
            await self._store.flush()

    async def confirm(self) -> None:
        """Note that the control plane stands by what Envoy runs with."""
        if self._store is not None:
            await self._store.confirm()

    # A reload

    async def prepare_takeover(self, prepared: Prepared, *, hot: bool) -> None:
        """Get ready for an Envoy with this bootstrap; ``hot``: it takes over from one that serves.

        Raises KumadpError if memory lacks what a new Envoy would wait for: while it waits, nobody has an admin. Right
        after an adoption the control plane rejects the stream for 10 s, and keys are in no file.
        """
        if self.session is None:
            return
        self.session.renew_early(prepared)
        if not hot:
            return
        try:
            async with asyncio.timeout(SUPPLIED_WITHIN):
                await self.session.relay.until_supplied()
        except TimeoutError:
            reason = "the control plane has not sent all that Envoy requests, and a new Envoy would wait for it"
            raise KumadpError(f"{reason}; the Envoy that ran keeps serving") from None

    async def apply(self, settings: Settings) -> Sequence[str]:
        """Take the drain time."""
        if self.session is not None:
            self.session.set_drain_time(settings.drain_time)
        return ()

    def go_back(self) -> None:
        """Continue with the Envoy that runs: the reload failed."""
        if self.session is not None:
            self.session.go_back()

    def retry(self) -> None:
        """Connect to the control plane at once if there is no stream: token or CA have changed."""
        if self.session is not None:
            self.session.relay.retry_upstream()

    def renew(self, prepared: Prepared, envoy_version: str) -> str:
        """Continue with this bootstrap, which an Envoy of this version runs with; returns a note for the operator."""
        if self._store is not None:
            self._store.bind(self._binding(envoy_version))
        if self.session is not None and self.session.renew(prepared):
            return "the control plane gets the change on a new stream, which it rejects for about 10 s"
        return ""

    # What the session reports

    def on_refused(self, error: ControlPlaneRefused) -> None:
        """End the run, unless the settings want Envoy to serve on."""
        self._context.reject(error)

    def on_opened(self) -> None:
        """Notify those that wait for the control plane."""
        for callback in self._on_opened:
            callback()

    def on_accepted(self, type_url: str) -> None:
        """Notify those that depend on what Envoy runs with."""
        for callback in self._on_accepted:
            callback(type_url)

    def on_answered(self, type_url: str) -> None:
        """Look whether the proof that the admin is private is to be repeated."""
        if self._admin_watch is not None:
            self._admin_watch.on_answered(type_url)

    # What Envoy reports

    def on_epoch_started(self, epoch: int, pid: int) -> None:
        """Expect the streams of this epoch."""
        if self.session is None or self._epochs is None:
            return
        if self._admin_watch is None:
            # Imported late: it needs the relay's reader of messages.
            from kumadp.relay.admin_fingerprint import AdminWatch

            self._admin_watch = AdminWatch(self.session.relay.snapshot, self._admin, self._epochs.recheck_admin)
            self._admin_watch.look()
        self.session.relay.envoy_started(epoch, pid)

    def _admin(self) -> AdminAddress:
        return self._context.bootstrap.admin

    def on_epoch_live(self, epoch: int) -> None:
        """Note that what this epoch accepted is good."""
        if self.session is not None:
            self.session.relay.envoy_live(epoch)

    def on_epoch_ended(self, epoch: int, *, expected: bool) -> None:
        """Note the end; one that is not ``expected`` casts doubt on what it was given last."""
        if self.session is not None:
            self.session.relay.envoy_ended(epoch, expected=expected)

    def on_takeover(self, *, active: bool) -> None:
        """Hold health reports back while a new epoch takes over."""
        if self.session is not None:
            self.session.relay.hold_health(active)
