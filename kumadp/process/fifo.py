"""The FIFO through which a child speaks that is to outlive us."""

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

# What a FIFO holds while nobody reads it: the most that an ordinary user may ask for (pipe(7)).
FIFO_SIZE = 1024 * 1024


def make_fifo(path: Path) -> tuple[int, int]:
    """A new FIFO: its read end, and one for the program that reads and writes.

    With a reader of its own the program never sees a broken pipe: Go dies of one at standard output. It does not block
    either: with nobody to read, a full FIFO would stop the program.
    """
    path.unlink(missing_ok=True)
    try:
        os.mkfifo(path, 0o600)
    except OSError as error:
        # Python's has no file name.
        raise OSError(error.errno, error.strerror, str(path)) from None
    read = open_own_fifo(path, os.O_RDONLY)
    try:
        # The same one, whatever has its name by now: the program writes to it.
        write = os.open(f"/proc/self/fd/{read}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        os.close(read)
        raise
    with contextlib.suppress(OSError):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, FIFO_SIZE)
    return read, write


def name_fifo(made: Path, pid: int) -> Path:
    """Give a FIFO a name of its own: there are two children of one name while Envoy is restarted hot."""
    named = made.with_name(f"{made.stem}.{pid}{made.suffix}")
    try:
        made.replace(named)
    except OSError as error:
        log.warning("%s cannot be made: %s; a later kumadp would not hear this process", named, error.strerror)
    return named


def remove_fifo(path: Path) -> None:
    """Remove a FIFO of ours, if it is there; anything else under its name stays. May block."""
    with contextlib.suppress(OSError):
        if not stat.S_ISFIFO(path.lstat().st_mode):
            log.warning("%s is not removed: it is not a FIFO", path)
            return
        path.unlink()


def open_fifo(path: Path) -> int:
    """The read end of a FIFO that a living process writes to; -1, and a warning, where it cannot be had."""
    try:
        return open_own_fifo(path, os.O_RDONLY)
    except OSError as error:
        log.warning("%s cannot be read: %s; what this process says is lost", path, error.strerror)
        return -1
