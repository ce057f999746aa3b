"""What one kumadp leaves to the next: over execve(2), or by its files when it was killed and its children live on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from kumadp.accesslog.component import AccessLogsHandover  # noqa: TC001 - msgspec reads the annotations
from kumadp.bootstrap.secrets import without_token
from kumadp.controlplane.bootstrap_client import Fetched
from kumadp.controlplane.bootstrap_messages import Aggregated  # noqa: TC001 - msgspec reads the annotations
from kumadp.daemon.ports import WAY
from kumadp.decoding import Undecodable, convert, decode_json, decode_msgpack
from kumadp.dns.resolver.table import HandedNames  # noqa: TC001 - msgspec reads the annotations
from kumadp.envoy.reload import AdoptedEnvoy, EnvoyState
from kumadp.errors import HandoverFailed
from kumadp.host.private_file import read_private, write_json
from kumadp.host.state_file import ChildRecord, adoptable, read_state, record, stray_processes
from kumadp.host.work_dir import SOURCE_FILE, HandedWorkDir, is_leftover, is_output
from kumadp.process.application import HandedProcess  # noqa: TC001
from kumadp.process.child import Child, HandedChild
from kumadp.process.supervisor import PreviousDeaths  # noqa: TC001
from kumadp.relay.snapshot import RelaySnapshot  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from kumadp.host.reexec.handover import Handover

log = logging.getLogger("kumadp.daemon")

T = TypeVar("T")
SECTION = "daemon"
_LARGEST = 32 << 20
_KILLED_WITHIN = 5.0


class Source(msgspec.Struct, frozen=True):
    """The bootstrap as the control plane made it, without the token; ``at`` in seconds since 1970."""

    tree: dict[str, Any]
    corefile_template: str | None
    at: float
    address: str = ""
    aggregate: tuple[Aggregated, ...] = ()

    @classmethod
    def of(cls, fetched: Fetched) -> Source:
        """What of it may be left to others."""
        return cls(
            without_token(fetched.tree), fetched.corefile_template, fetched.at, fetched.address, fetched.aggregate
        )

    def fetched(self) -> Fetched:
        """As it was."""
        return Fetched(self.tree, self.corefile_template, self.at, "", self.address, self.aggregate)


class Left(msgspec.Struct, frozen=True):
    """What is handed over by execve(2). It holds keys (the relay's memory): never to disk.

    ``at`` by the monotonic clock, ``started_as`` as in `Before`.
    """

    work: HandedWorkDir
    ready: bool
    started: float
    inbound_drained: bool
    children: tuple[HandedChild, ...]
    at: float
    started_as: tuple[str, ...] = ()
    ports: dict[str, int] = {}
    source: Source | None = None
    envoy: EnvoyState | None = None
    memory: RelaySnapshot | None = None
    access_logs: AccessLogsHandover | None = None
    past: dict[str, PreviousDeaths] = {}
    application: HandedProcess | None = None
    levels: dict[str, str] = {}
    names: HandedNames | None = None


@dataclass(slots=True)
class Before:
    """What there was before this kumadp; empty at a start from nothing. ``count`` re-executions so far.

    ``left_at``: when it was re-executed, by the monotonic clock. ``started_as``: how Envoy was started, comparable.
    ``ports``: those that were chosen, by the field of the settings.
    ``killed``: what could not be adopted. ``levels``: what was requested of the log. ``removed_at_end``: files that a
    kumadp that was killed would have removed at its end.
    """

    source: Fetched | None = None
    envoy: AdoptedEnvoy | None = None
    coredns: Child | None = None
    memory: RelaySnapshot | None = None
    access_logs: AccessLogsHandover | None = None
    work: HandedWorkDir | None = None
    ready: bool = False
    started: float | None = None
    inbound_drained: bool = False
    left_at: float | None = None
    started_as: tuple[str, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    count: int = 0
    pids: frozenset[int] = field(default_factory=frozenset)
    fifos: frozenset[Path] = field(default_factory=frozenset)
    killed: list[Child] = field(default_factory=list)
    past: dict[str, PreviousDeaths] = field(default_factory=dict)
    names: HandedNames | None = None
    application: HandedProcess | None = None
    levels: Mapping[str, str] = field(default_factory=dict)
    removed_at_end: tuple[str, ...] = ()

    @property
    def children(self) -> tuple[Child, ...]:
        """Those that are to be gone on with."""
        envoys = (self.envoy.current, self.envoy.retiring) if self.envoy is not None else ()
        return tuple(child for child in (*envoys, self.coredns) if child is not None)

    @property
    def serves(self) -> bool:
        """Whether one of the Envoys that were left still runs."""
        envoys = (self.envoy.current, self.envoy.retiring) if self.envoy is not None else ()
        return any(child is not None and not child.ended for child in envoys)

    def was_led(self, way: str) -> bool:
        """Whether the Envoy that was left gets its configuration this ``way``; one of which nothing is known does."""
        return all(one == way for one in self.started_as if one.startswith(WAY))

    async def end_envoy(self, grace: float) -> None:
        """End the Envoys that were left; returns when they have ended."""
        if (left := self.envoy) is not None:
            self.envoy, self.started_as = None, ()
            children = (left.current, left.retiring)
            await asyncio.gather(*(child.stop(grace) for child in children if child is not None))

    async def end_names(self, grace: float) -> None:
        """End the CoreDNS that was left; returns when it has ended."""
        if (left := self.coredns) is not None:
            self.coredns = None
            log.info("the CoreDNS that was left (pid %d) has no use any more: it is ended", left.pid)
            await left.stop(grace)

    async def ended(self) -> None:
        """Return once those that were killed have ended: until then they hold their ports."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILLED_WITHIN):
                await asyncio.gather(*(child.wait() for child in self.killed))

    @property
    def reexecuted(self) -> bool:
        """Whether this process was a kumadp before."""
        return self.work is not None


def decode_left(handover: Handover) -> Left:
    """What the program before us says of itself; raises HandoverFailed where it speaks another language."""
    try:
        return decode_msgpack(handover.sections.get(SECTION, b""), Left)
    except Undecodable as error:
        raise HandoverFailed(f"what is handed over cannot be read: {error}") from None


def left_by(handover: Handover) -> Before:
    """What the program before us handed over; raises HandoverFailed."""
    left = decode_left(handover)
    children = {}
    for handed in left.children:
        try:
            children[handed.pid] = Child.from_handed(handed)
        except (OSError, ProcessLookupError) as error:
            log.warning("%s (pid %d) ended while kumadp was re-executed: %s", handed.name, handed.pid, error)
    before = Before(
        source=left.source.fetched() if left.source is not None else None,
        memory=left.memory,
        access_logs=left.access_logs,
        work=left.work,
        ready=left.ready,
        started=left.started,
        inbound_drained=left.inbound_drained,
        left_at=left.at,
        started_as=left.started_as,
        ports=left.ports,
        count=handover.count,
        past=left.past,
        names=left.names,
        application=left.application,
        levels=left.levels,
    )
    _sort(before, children, left.envoy)
    return before


def left_in(directory: Path) -> Before:
    """What a kumadp that was killed left running, as its files in the work directory say. May block.

    Processes that cannot be gone on with are killed: they would hold the ports.
    """
    before = Before()
    state = read_state(directory)
    parts = state.parts if state is not None else {}
    before.removed_at_end = _decode(parts.get("removed_at_end"), tuple[str, ...]) or ()
    children = {}
    for known in adoptable(state) if state is not None else ():
        try:
            children[known.pid] = Child.adopt(
                known.name,
                known.pid,
                known.start_time,
                ours=False,
                fifo=_output_in(directory, known.fifo) if known.fifo else None,
            )
        except (OSError, ValueError) as error:
            log.warning("%s (pid %d) cannot be adopted: %s", known.name, known.pid, error)
    for pid, start_time in stray_processes(directory, children):
        with contextlib.suppress(OSError, ProcessLookupError):
            children[pid] = Child.adopt("a process", pid, start_time, ours=False)
    if not children:
        return before
    envoy = _decode(parts.get("envoy"), EnvoyState)
    before.started_as = _decode(parts.get("started_as"), tuple[str, ...]) or ()
    before.ports = _decode(parts.get("ports"), dict[str, int]) or {}
    before.source = _read_source(directory)
    _sort(before, children, envoy)
    for child in (before.envoy.current if before.envoy else None, before.coredns):
        if child is not None:
            log.info("%s (pid %d) of an earlier kumadp is adopted", child.name, child.pid)
    return before


def _output_in(directory: Path, text: str) -> Path:
    """The FIFO of a child, which is removed at its end: always one of the work directory, whatever the state file says.

    Its name alone counts, since the directory may have more than one path. Raises ValueError if it is no such name.
    """
    name = Path(text).name
    if "\0" in name or not is_output(name):
        raise ValueError(f"its output {text!r} is not a FIFO of the work directory")
    return directory / name


def _sort(before: Before, children: dict[int, Child], envoy: EnvoyState | None) -> None:
    before.pids = frozenset(children)
    before.fifos = frozenset(child.fifo for child in children.values() if child.fifo is not None)
    current = children.pop(envoy.current, None) if envoy is not None else None
    if envoy is not None and current is not None:
        retiring = children.pop(envoy.retiring, None) if envoy.retiring is not None else None
        before.envoy = AdoptedEnvoy(envoy, current, retiring)
    for child in children.values():
        if child.name == "coredns" and before.coredns is None:
            before.coredns = child
        else:
            log.warning("%s (pid %d) of before cannot be gone on with: it is killed", child.name, child.pid)
            child.send_signal(signal.SIGKILL)
            before.killed.append(child)


def _decode(found: object, kind: type[T]) -> T | None:
    try:
        return convert(found, kind) if found is not None else None
    except Undecodable:
        return None


def write_source(directory: Path, fetched: Fetched) -> None:
    """Keep the bootstrap for a kumadp after this one, 0600, without the token; a failure costs a warning. May block."""
    try:
        write_json(directory / SOURCE_FILE, Source.of(fetched))
    except OSError as error:
        log.warning("%s cannot be written: %s", directory / SOURCE_FILE, error.strerror)


def tidy(directory: Path, kept: Container[Path] = ()) -> None:
    """Remove what reloads and dead children left: bootstraps that were in turn, FIFOs but those ``kept``. May block."""
    # Nothing of it is needed: a directory that was taken away has nothing to remove, and a folder that somebody put in
    # the place of a file can stay.
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if path not in kept and (is_leftover(path.name) or (is_output(path.name) and path.is_fifo())):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def forget(directory: Path) -> None:
    """Leave nothing for another kumadp. May block."""
    tidy(directory)
    with contextlib.suppress(OSError):
        (directory / SOURCE_FILE).unlink(missing_ok=True)


def _read_source(directory: Path) -> Fetched | None:
    try:
        return decode_json(read_private(directory / SOURCE_FILE, _LARGEST), Source).fetched()
    except FileNotFoundError:
        return None
    except (OSError, Undecodable) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log.warning(
            "%s is not used: %s; the bootstrap is requested from the control plane", directory / SOURCE_FILE, reason
        )
        return None


def records(children: Sequence[Child], programs: Mapping[str, str]) -> list[ChildRecord]:
    """Living children as the state file has them; ``programs`` by the child's name. May block."""
    found = (
        record(
            child.name,
            child.pid,
            (programs.get(child.name, ""),),
            fifo=str(child.fifo or ""),
            start_time=child.start_time,
        )
        for child in children
    )
    return [one for one in found if one is not None]
