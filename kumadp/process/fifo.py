"""The FIFO for the output of a child that may outlive us."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from typing import TYPE_CHECKING

from kumadp.host.private_file import open_own_fifo

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("kumadp.process")

# Capacity of the FIFO while nothing reads it: the maximum for an ordinary user (pipe(7)).
FIFO_SIZE = 1024 * 1024


def make_fifo(path: Path) -> tuple[int, int]:
    """Create a FIFO; return its read end, and an end for the program that reads and writes.

    Since it is a reader itself, the program never gets a broken pipe: Go dies of one at standard output. The end does
    not block either: without another reader, a full FIFO would stop the program.
    """
    path.unlink(missing_ok=True)
    try:
        os.mkfifo(path, 0o600)
    except OSError as error:
        # Python's error has no file name.
        raise OSError(error.errno, error.strerror, str(path)) from None
    read = open_own_fifo(path, os.O_RDONLY)
    try:
        # The same FIFO, even if its name refers to another file by now.
        write = os.open(f"/proc/self/fd/{read}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        os.close(read)
        raise
    with contextlib.suppress(OSError):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, FIFO_SIZE)
    return read, write


def name_fifo(path: Path, pid: int) -> Path:
    """Add the pid to the name of a FIFO: two children have the same name during a hot restart of Envoy."""
    unique = path.with_name(f"{path.stem}.{pid}{path.suffix}")
    try:
        path.replace(unique)
    except OSError as error:
        log.warning("%s cannot be made: %s; a later kumadp could not read the output", unique, error.strerror)
    return unique


def remove_fifo(path: Path) -> None:
    """Remove a FIFO of ours, if it exists; any other file with its name stays. May block."""
    with contextlib.suppress(OSError):
        if not stat.S_ISFIFO(path.lstat().st_mode):
            log.warning("%s is not removed: it is not a FIFO", path)
            return
        path.unlink()


def open_fifo(path: Path) -> int:
    """Return the read end of a FIFO that a running process writes to; -1, with a warning, if it cannot be opened."""
    try:
        return open_own_fifo(path, os.O_RDONLY)
    except OSError as error:
        log.warning("%s cannot be read: %s; the output of this process is lost", path, error.strerror)
        return -1
