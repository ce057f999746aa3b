"""Paths of kumadp's own Unix sockets: in private folders, short enough for a socket."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.errors import WorkDirError
from kumadp.host.work_dir import RELAY_SOCKET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SUFFIX = ".control"
RUN = Path("/run/kumadp")
# Linux has 108 bytes for the path of a Unix socket, with a zero byte at its end (unix(7)).
LONGEST_SOCKET_PATH = 107


def folders(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the folders for control sockets, the preferred one first; they are neither created nor checked."""
    if runtime := environ.get("RUNTIME_DIRECTORY"):
        yield Path(runtime.split(":")[0])
    if user := environ.get("XDG_RUNTIME_DIR"):
        yield Path(user) / "kumadp"
    yield RUN
    yield Path("/tmp") / f"kumadp-{os.geteuid()}"  # noqa: S108 - 0700 and checked to be ours


def socket_name(name: str) -> str:
    """Return the file name for the data plane ``name``, short enough for a Unix socket."""
    return f"{name[:60] or 'kumadp'}{SUFFIX}"


def control_socket_path(name: str, environ: Mapping[str, str], work: Path | None = None) -> Path:
    """Return the path for the control socket of the data plane ``name``, in the first folder that can be private.

    The work directory is the last choice, if no other can be written. A folder with too long a path is skipped. Raises
    OSError if there is none.
    """
    return _private_path(socket_name(name), (*folders(environ), *((work,) if work is not None else ())))


def relay_socket_path(name: str, work: Path, environ: Mapping[str, str]) -> Path:
    """Return the path for the relay's socket: in the work directory, or next to the control socket if that is too long.

    Raises WorkDirError if there is none.
    """
    path = work / RELAY_SOCKET
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    try:
        return _private_path(f"{name[:60] or 'kumadp'}.relay", folders(environ))
    except OSError:
        raise WorkDirError(f"{path} is too long for a socket", "choose a shorter --work-dir") from None


def _private_path(file: str, places: Iterable[Path]) -> Path:
    for folder in places:
        path = folder / file
        if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
            continue
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
            private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
            if private and os.access(folder, os.W_OK):
                if not path.is_socket():
                    # A writable folder may be on a full disk.
                    _check_writable(folder)
                return path
    raise OSError("no private directory for the control socket")


def _check_writable(folder: Path) -> None:
    """Raise OSError if no file can be made there."""
    probe = folder / f".{os.urandom(8).hex()}"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    probe.unlink()


def control_socket_files(environ: Mapping[str, str]) -> list[Path]:
    """Return the existing control sockets, also of dead processes, in folders that belong to us or root."""
    sockets: list[Path] = []
    for folder, pattern in (*((folder, "*" + SUFFIX) for folder in folders(environ)), (RUN, "*/*" + SUFFIX)):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid in {0, os.geteuid()}:
                sockets += sorted(folder.glob(pattern))
    return sockets
