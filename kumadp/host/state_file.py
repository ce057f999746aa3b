"""The state file: the child processes of a kumadp, so that one that starts after its death can adopt them."""

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

# A record of a child has about 500 bytes.
_MAX_SIZE = 4 << 20
# The options by which children get their configuration.
_CONFIGURATION_OPTIONS = (b"--config-path", b"-conf")
FORMAT = 1


class ChildRecord(msgspec.Struct, frozen=True):
    """A child in the state file.

    ``program`` is the program that was started (``argv[0]`` with links resolved): right after the start, ``exe`` is
    still that of the helper that executes it. ``arguments`` is a digest of argv.
    """

    name: str
    pid: int
    start_time: int
    uid: int
    exe: str
    program: str = ""
    arguments: str = ""
    fifo: str = ""

    def is_alive(self) -> bool:
        """Return whether that process still runs: with the same start time, our user, the same program."""
        process = identity_of(self.pid)
        return process is not None and self._is(process)

    def _is(self, process: ProcessIdentity) -> bool:
        if (process.start_time, process.uid) != (self.start_time, self.uid) or process.uid != os.geteuid():
            return False
        # The path of a program with capabilities may be hidden from us: its start time must suffice.
        return not process.exe or process.exe in {self.exe, self.program}


class SavedState(msgspec.Struct, frozen=True):
    """The whole file. Start times are of one boot (``boot``) only; ``parts`` holds a section of each part, by name."""

    format: int
    boot: str
    pid: int
    start_time: int
    children: tuple[ChildRecord, ...] = ()
    parts: dict[str, Any] = {}


def read_state(directory: Path) -> SavedState | None:
    """Return the state that the last kumadp of this work directory wrote; None without a valid one. May block."""
    path = directory / STATE_FILE
    try:
        state = decode_json(read_private(path, _MAX_SIZE), SavedState)
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
    """Return the children in the state that still run, in their order there."""
    return [child for child in state.children if child.is_alive()]


def stray_processes(directory: Path, expected: Container[int]) -> list[tuple[int, int]]:
    """Return pid and start time of our user's processes whose configuration is in ``directory``. May block.

    Without those ``expected``. They were started right before a kumadp was killed, or its state file is lost.
    """
    strays = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in expected:
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError as error:
            if is_gone(error) or isinstance(error, PermissionError):
                continue
            raise
        configurations = (
            os.fsdecode(value) for flag, value in itertools.pairwise(argv) if flag in _CONFIGURATION_OPTIONS
        )
        if not any(Path(path).parent == directory for path in configurations):
            continue
        identity = identity_of(int(entry.name))
        if identity is not None and identity.uid == os.geteuid():
            strays.append((identity.pid, identity.start_time))
    return strays


def _log_failure(reason: str) -> None:
    if reason:
        log.warning("%s", reason)


class StateFile:
    """Writes the state file on each change, in a thread; changes that arrive during a write are combined.

    A failed write costs one warning and the adoption, nothing else. ``on_failure`` is called on the event loop with
    the reason when it changes, and with an empty text once the file is written again.
    """

    def __init__(self, directory: Path, on_failure: Callable[[str], None] = _log_failure) -> None:
        self._path = directory / STATE_FILE
        self._on_failure = on_failure
        self._children: tuple[ChildRecord, ...] = ()
        self._parts: dict[str, Any] = {}
        self._writing: asyncio.Task[None] | None = None
        self._again = False
        self._reason = ""

    def note(self, children: Iterable[ChildRecord], parts: Mapping[str, Any] | None = None) -> None:
        """Write these as all children that there are; to be called on the event loop."""
        self._children = tuple(children)
        self._parts = dict(parts or {})
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="state file")
        else:
            self._again = True

    async def written(self) -> None:
        """Wait until the last `note` is on disk, or could not be written."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    def remove(self) -> None:
        """Remove the file: there is nothing to adopt. May block."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _write(self) -> None:
        try:
            while True:
                self._again = False
                reason = await asyncio.to_thread(self._replace, self._children, self._parts)
                if reason != self._reason:
                    self._reason = reason
                    self._on_failure(reason)
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
    """Return a record of a running process, or None if it has ended. May block.

    If the process cannot be inspected now, ``start_time`` is assumed to be its start time.
    """
    import hashlib

    try:
        process = identity_of(pid)
    except OSError:
        process = ProcessIdentity(pid, start_time, os.geteuid(), "")
    if process is None:
        return None
    digest = hashlib.sha256("\0".join(argv).encode()).hexdigest()
    program = os.path.realpath(argv[0]) if argv else ""
    return ChildRecord(name, pid, process.start_time, process.uid, process.exe, program, digest, fifo)
