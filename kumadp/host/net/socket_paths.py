"""Where kumadp's own Unix sockets go: private folders, and names short enough for a socket."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.errors import WorkDirError
from kumadp.host.work_dir import RELAY_SOCKET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SUFFIX = ".control"
RUN = Path("/run/kumadp")
# Linux has 108 bytes for the path of a Unix socket, one of them ends it (unix(7)).
LONGEST_SOCKET_PATH = 107


def folders(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where control sockets go, the first choice first; whether they can be made or trusted is not looked at."""
    if runtime := environ.get("RUNTIME_DIRECTORY"):
        yield Path(runtime.split(":")[0])
    if user := environ.get("XDG_RUNTIME_DIR"):
        yield Path(user) / "kumadp"
    yield RUN
    yield Path("/tmp") / f"kumadp-{os.geteuid()}"  # noqa: S108 - 0700 and checked to be ours


def socket_name(name: str) -> str:
    """The file name for the data plane ``name``, short enough for a Unix socket."""
    return f"{name[:60] or 'kumadp'}{SUFFIX}"


def control_socket_path(name: str, environ: Mapping[str, str], work: Path | None = None) -> Path:
    """Where the control socket of the data plane ``name`` goes: the first folder that is, or can be made, private.

    The work directory is the last one, where nothing else can be written. A folder whose name leaves no room for the
    socket's is passed over. Raises OSError if there is none.
    """
    return _private_path(socket_name(name), (*folders(environ), *((work,) if work is not None else ())))


def relay_socket_path(name: str, work: Path, environ: Mapping[str, str]) -> Path:
    """Where Envoy finds the relay: in the work directory, or beside the control socket where that name is too long.

    Raises WorkDirError where there is no place.
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
            found = folder.lstat()
            private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if private and os.access(folder, os.W_OK):
                if not path.is_socket():
                    # A folder that can be written may be on a disk without room for another file.
                    tempfile.NamedTemporaryFile(dir=folder, prefix=".").close()
                return path
    raise OSError("no private directory for the control socket")


def control_socket_files(environ: Mapping[str, str]) -> list[Path]:
    """Where control sockets are, those of the dead among them; in folders of ours or root's."""
    found: list[Path] = []
    for folder, pattern in (*((folder, "*" + SUFFIX) for folder in folders(environ)), (RUN, "*/*" + SUFFIX)):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid in {0, os.geteuid()}:
                found += sorted(folder.glob(pattern))
    return found
