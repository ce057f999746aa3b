"""The state file: which processes a kumadp has, so that one started after its death can adopt them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kumadp.decoding import Undecodable, decode_json
from kumadp.host.descriptors import is_gone
from kumadp.host.private_file import NotOurs, read_private, write_json
from kumadp.host.process_identity import ProcessIdentity, boot_id, identity_of, start_time_of
from kumadp.host.work_dir import STATE_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

log = logging.getLogger("kumadp.host")

# A record of a child takes about 500 bytes.
_LARGEST = 4 << 20
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

    def _is(self, found: ProcessIdentity) -> bool:
        if (found.start_time, found.uid) != (self.start_time, self.uid) or found.uid != os.geteuid():
            return False
        # Of a program that has capabilities we may not see the path: its start time has to do.
        return not found.exe or found.exe in {self.exe, self.program}


class SavedState(msgspec.Struct, frozen=True):
    """The whole file. Start times are of one boot (``boot``) only; ``parts`` holds what a part wants back, by name."""

    format: int
    boot: str
    pid: int
    start_time: int
    children: tuple[ChildRecord, ...] = ()
    parts: dict[str, Any] = {}


def read_state(directory: Path) -> SavedState | None:
    """What the last kumadp of this work directory left; None where there is none, or none that can be used. Blocks."""
    path = directory / STATE_FILE
    try:
        state = decode_json(read_private(path, _LARGEST), SavedState)
    except FileNotFoundError:
        return None
    except NotOurs as error:
        log.warning("%s is not private to this user and is not used: %s; no process is adopted", path, error.strerror)
        return None
    except (OSError, Undecodable) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log.warning("%s cannot be read: %s; no process is adopted", path, reason)
        return None
    if state.format != FORMAT:
        log.warning("%s has format %d, this kumadp knows %d; no process is adopted", path, state.format, FORMAT)
        return None
    boot = boot_id()
    if not boot or not state.boot:
        # A pid and a start time may be those of another process after a boot.
        log.warning("%s is not used: the boot id of this host cannot be read; no process is adopted", path)
        return None
    return state if state.boot == boot else None


def adoptable(state: SavedState) -> list[ChildRecord]:
    """Those of its children that still run, in the order they were noted."""
    return [child for child in state.children if child.is_alive()]


def stray_processes(directory: Path, known: Container[int]) -> list[tuple[int, int]]:
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


def _log_failure(reason: str) -> None:
    if reason:
        log.warning("%s", reason)


class StateFile:
    """Writes the state file, on each change, in a thread; changes that come while it is written become one.

    A file that cannot be written costs one warning and adoption, nothing else. ``failed`` is called on the event loop
    with the reason when it changes, and with an empty text once the file is written again.
    """

    def __init__(self, directory: Path, failed: Callable[[str], None] = _log_failure) -> None:
        self._path = directory / STATE_FILE
        self._failed = failed
        self._children: tuple[ChildRecord, ...] = ()
        self._parts: dict[str, Any] = {}
        self._writing: asyncio.Task[None] | None = None
        self._again = False
        self._reason = ""

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
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _write(self) -> None:
        try:
            while True:
                self._again = False
                reason = await asyncio.to_thread(self._replace, self._children, self._parts)
                if reason != self._reason:
                    self._reason = reason
                    self._failed(reason)
                if not self._again:
                    return
        finally:
            self._writing = None

    def _replace(self, children: tuple[ChildRecord, ...], parts: dict[str, Any]) -> str:
        state = SavedState(FORMAT, boot_id(), os.getpid(), start_time_of(os.getpid()) or 0, children, parts)
        try:
            write_json(self._path, state)
        except OSError as error:
            return f"{self._path} cannot be written: {error.strerror}; what runs now could not be adopted"
        return ""


def record(name: str, pid: int, argv: tuple[str, ...], *, fifo: str = "", start_time: int = 0) -> ChildRecord | None:
    """A record of a process that runs, without what is Envoy's; None when it is gone. May block.

    Where the process cannot be looked at now, it is taken for the one that has this ``start_time``.
    """
    import hashlib

    try:
        found = identity_of(pid)
    except OSError:
        found = ProcessIdentity(pid, start_time, os.geteuid(), "")
    if found is None:
        return None
    digest = hashlib.sha256("\0".join(argv).encode()).hexdigest()
    program = os.path.realpath(argv[0]) if argv else ""
    return ChildRecord(name, pid, found.start_time, found.uid, found.exe, program, digest, fifo)
