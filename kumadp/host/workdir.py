"""The private directory of one run: bootstrap, Corefile, sockets."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kumadp.errors import WorkDirError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PREFIX = "kumadp-"
LOCK = "kumadp.lock"


class HandedWorkDir(msgspec.Struct, frozen=True):
    """A work directory as it is told to the program that takes our place by execve(2), with its lock."""

    path: str
    temporary: bool
    lock: int


@dataclass
class WorkDir:
    """``path`` holds what kumadp writes, ``sockets`` is told to the control plane, ``dns`` holds the Corefile."""

    path: Path
    sockets: Path
    dns: Path
    temporary: bool
    _lock: int = field(default=-1, repr=False)

    def handed(self) -> HandedWorkDir:
        """This directory for the next program; ``lock`` must stay open over execve(2), so that nobody else takes it."""
        return HandedWorkDir(str(self.path), self.temporary, self._lock)

    def close(self) -> None:
        """Let the next run have it; a temporary directory goes."""
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def open_work_dir(
    name: str,
    work_dir: str,
    socket_dir: str,
    dns_dir: str,
    environ: Mapping[str, str],
    handed: HandedWorkDir | None = None,
    emptied: Callable[[Path], object] = lambda _path: None,
) -> WorkDir:
    """Make or take the work directory, 0700 and locked; raises WorkDirError.

    The order is: the setting, ``$RUNTIME_DIRECTORY`` (systemd), ``/run/kumadp/<name>`` when that can be made, a
    temporary directory. Temporary ones that dead runs left behind are removed, after ``emptied`` has cleaned what their
    files lead to elsewhere; a living run holds a lock on its own.
    What was ``handed`` over goes before all of them: this run has its children and sockets there.
    """
    _remove_dead(emptied)
    temporary = handed is not None and handed.temporary
    if handed is not None:
        path = make_private(Path(handed.path))
    elif work_dir:
        path = make_private(Path(work_dir))
    elif runtime := environ.get("RUNTIME_DIRECTORY"):
        path = make_private(Path(runtime.split(":")[0]))
    else:
        try:
            path = make_private(Path("/run/kumadp") / (name or "default"))
        except WorkDirError:
            path = Path(tempfile.mkdtemp(prefix=PREFIX))
            temporary = True
    lock = handed.lock if handed is not None else _lock(path)
    try:
        return WorkDir(
            path,
            make_private(Path(socket_dir)) if socket_dir else path,
            make_private(Path(dns_dir)) if dns_dir else path,
            temporary,
            lock,
        )
    except WorkDirError:
        os.close(lock)
        raise


def make_private(path: Path, setting: str = "--work-dir") -> Path:
    """Make or take a directory that only its owner can change; raises WorkDirError, which names the ``setting``."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise WorkDirError(
            f"{path}: {error.strerror}", f"choose a directory that can be written with {setting}"
        ) from None
    return check_private(path, setting)


def check_private(path: Path, setting: str) -> Path:
    """A directory that is there, if only its owner can change it; raises WorkDirError."""
    try:
        found = path.stat()
    except OSError as error:
        raise WorkDirError(
            f"{path}: {error.strerror}", f"choose a directory that can be written with {setting}"
        ) from None
    if not path.is_dir():
        raise WorkDirError(f"{path} is not a directory", f"choose another {setting}")
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise WorkDirError(f"{path} belongs to another user", f"choose another {setting}")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise WorkDirError(f"{path} can be written by others", f"chmod 700 {path}")
    if not os.access(path, os.W_OK):
        raise WorkDirError(f"{path} cannot be written", f"choose another {setting}")
    return path.absolute()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What is written in here goes to ``path``; raises WorkDirError where that fails."""
    try:
        yield
    except OSError as error:
        raise WorkDirError(f"{path} cannot be written: {error.strerror or error}", "is the disk full?") from None


def _lock(path: Path) -> int:
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise WorkDirError(
            f"{path} is used by another kumadp that is running", "give each its own --work-dir"
        ) from None
    return handle


def _remove_dead(emptied: Callable[[Path], object]) -> None:
    for path in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.geteuid() or not (path / LOCK).is_file():
                continue
            handle = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                emptied(path)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)
