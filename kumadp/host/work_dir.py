"""The private directory of one run: bootstrap, Corefile, sockets."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, field

from kumadp.errors import WorkDirError
from kumadp.host.private_file import make_folders, pin_folder, why_not_ours, write_private
from kumadp.records import hiding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Every file name in the work directory, but for those of the sockets that Kuma names (`kumadp.host.socket_names`).
LOCK_FILE = "kumadp.lock"
STATE_FILE = "state.json"
"""Which processes run, for adoption (`kumadp.host.state_file`)."""
SOURCE_FILE = "source.json"
"""The bootstrap as the control plane sent it, for adoption."""
BOOTSTRAP_FILE = "bootstrap.yaml"
"""The configuration that Envoy starts with; after a reload see `bootstrap_file`."""
TOKEN_FILE = "dataplane.token"  # noqa: S105 - a name
"""A data plane token that was given as a value."""
RELAY_SOCKET = "relay.sock"
"""The socket of the xDS relay, to which Envoy connects."""
COREFILE = "Corefile"
"""In the directory of CoreDNS, which by default is the work directory."""
TRIAL_SUFFIX = ".trial"
"""Suffix of a Corefile that is only checked."""
XDS_FOLDER = "xds"
CLUSTERS_FILE, LISTENERS_FILE = "clusters.json", "listeners.json"
"""In `XDS_FOLDER`: the resources that a standalone Envoy reads."""
OUTPUT_SUFFIX = ".out"
"""Suffix of the FIFO for the output of a child that may outlive kumadp."""
HOT_RESTART_PREFIX, BASE_ID_SUFFIX = "h", ".base"
"""Names of hot restart's sockets and of the file with their base id, with a serial number after the prefix."""
_ROOM_CHECK_FILE = "room.check"

PREFIX = "kumadp-"
"""Prefix of temporary work directories."""
# Where a temporary directory is created if TMPDIR names none.
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - mkdtemp(3) makes a new one, 0700

# The directory may be one of the user's, with other files in it: whole names are matched.
_NUMBERED_BOOTSTRAP = re.compile(r"bootstrap\.\d+\.yaml")
# Files that were written only in part (`kumadp.host.private_file`).
_UNFINISHED = re.compile(r"(?:bootstrap(?:\.\d+)?\.yaml|state\.json|source\.json|dataplane\.token)\.new")
_OUTPUT = re.compile(r".+\.out(?:\..+)?")


def bootstrap_file(number: int) -> str:
    """Return the name of the bootstrap that a reload writes, the ``number``-th."""
    return f"bootstrap.{number}.yaml"


def is_leftover(name: str) -> bool:
    """Return whether a file of this name is needed by no later run: a bootstrap of a reload, a file written in part."""
    return bool(_NUMBERED_BOOTSTRAP.fullmatch(name) or _UNFINISHED.fullmatch(name))


def is_output(name: str) -> bool:
    """Return whether this is the name of a FIFO for a child's output (`OUTPUT_SUFFIX`)."""
    return _OUTPUT.fullmatch(name) is not None


log = logging.getLogger("kumadp.host")


class HandedWorkDir(msgspec.Struct, frozen=True):
    """A work directory and its lock, for the program that replaces us by execve(2)."""

    path: str
    temporary: bool
    lock: int
    removed_at_end: tuple[str, ...] = ()


class WorkDir(Struct):
    """``path`` holds our files, ``sockets`` those that the control plane knows, ``dns`` the Corefile."""

    path: Path
    sockets: Path
    dns: Path
    temporary: bool
    _lock: int = -1
    removed_at_end: set[Path] = field(default_factory=set)
    """Files that the next run does not need."""

    __repr__ = hiding("_lock", "removed_at_end")

    def handed(self) -> HandedWorkDir:
        """Return this directory for the next program; ``lock`` must stay open over execve(2) to stay locked."""
        removed = tuple(str(path) for path in self.removed_at_end)
        return HandedWorkDir(str(self.path), self.temporary, self._lock, removed)

    def close(self) -> None:
        """Unlock the directory, without the files to remove at the end; a temporary one is removed. May block."""
        for path in self.removed_at_end:
            with contextlib.suppress(OSError):
                path.unlink()
        if self.temporary:
            import shutil

            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def open_work_dir(
    name: str,
    work_dir: str,
    socket_dir: str,
    dns_dir: str,
    environ: Mapping[str, str],
    handed: HandedWorkDir | None = None,
    before_removal: Callable[[Path], object] = lambda _path: None,
) -> WorkDir:
    """Create or open the work directory, 0700 and locked; raises WorkDirError.

    The order is: the setting, ``$RUNTIME_DIRECTORY`` (systemd), ``/run/kumadp/<name>`` if that can be created, a
    temporary directory. Temporary ones that dead runs left behind are removed, after ``before_removal`` has cleaned up
    what their files refer to elsewhere; a living run holds a lock on its own.
    A directory that was ``handed`` over comes before all of them: this run has its children and sockets there.
    """
    _remove_dead(temporary_folders(environ), before_removal)
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
            path = make_temporary(temporary_folders(environ), PREFIX)
            temporary = True
    _check_owner(path)
    lock = handed.lock if handed is not None else _lock(path)
    pin_folder(path)
    try:
        return WorkDir(
            path,
            make_private(Path(socket_dir), "KUMA_DATAPLANE_RUNTIME_SOCKET_DIR") if socket_dir else path,
            make_private(Path(dns_dir), "--dns-server-config-dir") if dns_dir else path,
            temporary,
            lock,
            {Path(file) for file in handed.removed_at_end} if handed is not None else set(),
        )
    except WorkDirError:
        os.close(lock)
        raise


def temporary_folders(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the folders for temporary directories: ``$TMPDIR``, else /tmp and /var/tmp. Writes to none of them."""
    tmpdir = environ.get("TMPDIR", "")
    return (Path(tmpdir),) if tmpdir else TEMPORARY


def make_temporary(folders: Sequence[Path], prefix: str) -> Path:
    """Create a directory, 0700, in the first of ``folders`` that allows it; raises WorkDirError if none does.

    May block.
    """
    import tempfile

    failures = []
    for folder in folders:
        try:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=folder)).resolve()
        except OSError as error:
            failures.append(f"{folder}: {error.strerror}")
    raise WorkDirError(
        f"no work directory can be made: {'; '.join(failures)}", "name a directory that can be written with --work-dir"
    )


def _check_owner(path: Path) -> None:
    """Warn if root works in a directory of another user, who can then change what runs as root."""
    owner = path.stat().st_uid
    if owner != os.geteuid():
        log.warning(
            "%s belongs to user %d, who can change what kumadp and Envoy do as root: use a directory of root",
            path, owner,
        )  # fmt: skip


def make_private(path: Path, setting: str = "--work-dir") -> Path:
    """Create or open a directory that only its owner can change; raises WorkDirError, which names the ``setting``."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        # Its path is written into files and messages that are UTF-8.
        raise WorkDirError(f"{path}: its name is not UTF-8 text", f"choose another {setting}") from None
    try:
        make_folders(path)
    except OSError as error:
        # The folder that cannot be created may be a parent.
        raise WorkDirError(
            f"{error.filename or path}: {error.strerror}", f"choose a directory that can be written with {setting}"
        ) from None
    return check_private(path, setting)


def check_private(path: Path, setting: str) -> Path:
    """Return the resolved path of a directory that only its owner can change; raises WorkDirError for any other."""
    try:
        status = path.stat()
    except OSError as error:
        raise WorkDirError(
            f"{path}: {error.strerror}", f"choose a directory that can be written with {setting}"
        ) from None
    if not path.is_dir():
        raise WorkDirError(f"{path} is not a directory", f"choose another {setting}")
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        raise WorkDirError(f"{path} belongs to another user", f"choose another {setting}")
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise WorkDirError(f"{path} can be written by others", f"chmod 700 {path}")
    if not os.access(path, os.W_OK):
        raise WorkDirError(f"{path} cannot be written", f"choose another {setting}")
    # Resolved, so that a link that is replaced later changes nothing.
    return path.resolve()


@contextlib.contextmanager
def reporting_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of writing to ``path`` in here into a WorkDirError with a hint."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "choose a directory that can be written with --work-dir")
        raise WorkDirError(f"{path} cannot be written: {error.strerror or error}", hint) from None


def check_free_space(path: Path) -> None:
    """Raise WorkDirError if a run could not write its files into this directory again. May block.

    Each file is written next to the one that it replaces, so there must be space for the largest one.
    """
    check_private(path, "--work-dir")
    files = (*path.glob("bootstrap*.yaml"), *path.glob(f"{XDS_FOLDER}/*.json"))
    sizes = [file.lstat().st_size for file in files]
    probe = path / _ROOM_CHECK_FILE
    try:
        with reporting_write_errors(path):
            write_private(probe, b"\0" * max([_MIN_SPACE, *(size for size in sizes if size <= _MAX_SPACE)]))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


# A bootstrap has 5 to 30 kB, and none of our files is larger than the maximum (bytes).
_MIN_SPACE = 64 << 10
_MAX_SPACE = 16 << 20
_HINTS = {
    errno.ENOSPC: "free some space, or choose another --work-dir",
    errno.EDQUOT: "free some space, or choose another --work-dir",
    errno.ENAMETOOLONG: "choose a shorter --work-dir",
}


def _lock(path: Path) -> int:
    file = path / LOCK_FILE
    with reporting_write_errors(file):
        # A link in its place may point anywhere, and opening a FIFO would block.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(file, flags, 0o600)
    # It may be from a run as the owner of the directory. Nothing is written to it.
    if why := why_not_ours(os.fstat(handle), 0, {os.geteuid(), path.stat().st_uid}):
        os.close(handle)
        raise WorkDirError(f"{file} cannot be used: {why}", "remove it, or choose another --work-dir")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise WorkDirError(
            f"{path} is used by another kumadp that is running", "give each its own --work-dir"
        ) from None
    return handle


def _remove_dead(folders: tuple[Path, ...], before_removal: Callable[[Path], object]) -> None:
    for path in (path for folder in folders for path in folder.glob(PREFIX + "*")):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.geteuid() or not (path / LOCK_FILE).is_file():
                continue
            handle = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                before_removal(path)
                import shutil

                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)
