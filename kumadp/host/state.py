"""The state file: which processes a kumadp has, so that one started after its death can adopt them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kumadp.bootstrap.store import write_private
from kumadp.decoding import Undecodable, decode_json
from kumadp.host.descriptors import is_gone
from kumadp.host.identity import Identity, boot_id, identity_of, start_time_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

log = logging.getLogger("kumadp.host")

NAME = "state.json"
# How Envoy and CoreDNS are told their configuration.
_CONFIGURED_BY = (b"--config-path", b"-conf")
FORMAT = 1


class ChildRecord(msgspec.Struct, frozen=True):
    """A child as the state file has it.

    ``program`` is what it was to become (``argv[0]`` with links resolved): right after its start, ``exe`` is still that
    of the helper that becomes it. ``epoch``, ``base_id`` and ``admin`` are Envoy's; ``arguments`` is a digest of argv.
    """

    name: str
    pid: int
    start_time: int
    uid: int
    exe: str
    program: str = ""
    arguments: str = ""
    fifo: str = ""
    epoch: int = 0
    base_id: int | None = None
    admin: str = ""

    def is_alive(self) -> bool:
        """Whether that process still runs: the same start, our user, the same program."""
        found = identity_of(self.pid)
        return found is not None and self._is(found)

    def _is(self, found: Identity) -> bool:
        if (found.start_time, found.uid) != (self.start_time, self.uid) or found.uid != os.geteuid():
            return False
        # Of a program that has capabilities we may not see the path: its start time has to do.
        return not found.exe or found.exe in {self.exe, self.program}


class State(msgspec.Struct, frozen=True):
    """The whole file. Start times are of one boot (``boot``) only; ``parts`` holds what a part wants back, by name."""

    format: int
    boot: str
    pid: int
    start_time: int
    children: tuple[ChildRecord, ...] = ()
    parts: dict[str, Any] = {}


def read_state(directory: Path) -> State | None:
    """What the last kumadp of this work directory left; None where there is none, or none that can be used. Blocks."""
    path = directory / NAME
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077 or not stat.S_ISREG(found.st_mode):
                log.warning("%s is not private to this user and is not used: no process is adopted", path)
                return None
            state = decode_json(file.read(), State)
    except FileNotFoundError:
        return None
    except (OSError, Undecodable) as error:
        log.warning("%s cannot be read: %s; no process is adopted", path, error)
        return None
    if state.format != FORMAT:
        log.warning("%s has format %d, this kumadp knows %d; no process is adopted", path, state.format, FORMAT)
        return None
    return state if state.boot == boot_id() else None


def adoptable(state: State) -> list[ChildRecord]:
    """Those of its children that still run, in the order they were noted."""
    return [child for child in state.children if child.is_alive()]


def strays(directory: Path, known: Container[int]) -> list[tuple[int, int]]:
    """Processes of this user that run with a configuration in ``directory`` and are not ``known``. May block.

    They were started right before a kumadp was killed, or its state file is lost. Each by pid and start time.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in known:
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError as error:
            if is_gone(error) or isinstance(error, PermissionError):
                continue
            raise
        named = (os.fsdecode(value) for flag, value in itertools.pairwise(argv) if flag in _CONFIGURED_BY)
        if not any(Path(path).parent == directory for path in named):
            continue
        identity = identity_of(int(entry.name))
        if identity is not None and identity.uid == os.geteuid():
            found.append((identity.pid, identity.start_time))
    return found


class StateFile:
    """Writes the state file, on each change, in a thread; changes that come while it is written become one.

    A file that cannot be written costs one warning and adoption, nothing else.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self._children: tuple[ChildRecord, ...] = ()
        self._parts: dict[str, Any] = {}
        self._writing: asyncio.Task[None] | None = None
        self._again = False
        self._warned = False

    def note(self, children: Iterable[ChildRecord], parts: Mapping[str, Any] | None = None) -> None:
        """Have these children written as all that there are; to be called on the event loop."""
        self._children = tuple(children)
        self._parts = dict(parts or {})
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="state file")
        else:
            self._again = True

    async def written(self) -> None:
        """Return once all that was noted is on disk, or could not be written."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    def remove(self) -> None:
        """Take the file away: nothing is left to adopt. May block."""
        self._path.unlink(missing_ok=True)

    async def _write(self) -> None:
        try:
            while True:
                self._again = False
                await asyncio.to_thread(self._replace, self._children, self._parts)
                if not self._again:
                    return
        finally:
            self._writing = None

    def _replace(self, children: tuple[ChildRecord, ...], parts: dict[str, Any]) -> None:
        state = State(FORMAT, boot_id(), os.getpid(), start_time_of(os.getpid()) or 0, children, parts)
        try:
            write_private(self._path, msgspec.json.format(msgspec.json.encode(state), indent=1))
        except OSError as error:
            if not self._warned:
                log.warning("%s cannot be written: %s; what runs now could not be adopted", self._path, error.strerror)
            self._warned = True
        else:
            self._warned = False


def record(name: str, pid: int, argv: tuple[str, ...], *, fifo: str = "", start_time: int = 0) -> ChildRecord | None:
    """A record of a process that runs, without what is Envoy's; None when it is gone. May block.

    Where the process cannot be looked at now, it is taken for the one that has this ``start_time``.
    """
    import hashlib

    try:
        found = identity_of(pid)
    except OSError:
        found = Identity(pid, start_time, os.geteuid(), "")
    if found is None:
        return None
    digest = hashlib.sha256("\0".join(argv).encode()).hexdigest()
    program = os.path.realpath(argv[0]) if argv else ""
    return ChildRecord(name, pid, found.start_time, found.uid, found.exe, program, digest, fifo)
