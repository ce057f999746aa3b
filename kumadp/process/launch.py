"""Starts a program through the exec helper, with its output in a pipe or FIFO."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.errors import HostExhausted, SpawnError
from kumadp.host.core_dumps import child_core_limit
from kumadp.host.descriptors import EXHAUSTED, child_descriptor_limit
from kumadp.host.process_identity import start_time_of
from kumadp.process.fifo import make_fifo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HELPER = Path(__file__).with_name("exec_helper.py")


class Launched(Struct, frozen=True):
    """A running process: its start time in clock ticks, and a function that reaps it and returns its exit code."""

    pid: int
    start_time: int
    pidfd: int
    wait: Callable[[], int]


def cannot_start(program: str, error: OSError) -> SpawnError:
    """Return the error of a program that could not be started; HostExhausted if the host lacks a resource for now."""
    kind = HostExhausted if error.errno in EXHAUSTED else SpawnError
    # The missing file may be the folder of its output, which the error names.
    where = f"{error.filename}: " if isinstance(error.filename, str | Path) and str(error.filename) != program else ""
    return kind(f"{program} cannot be started: {where}{error.strerror}")


def tied_to_parent(
    argv: tuple[str, ...], number: int, environment: Mapping[str, str], *, lock_death_signal: bool = False
) -> tuple[str, ...]:
    """Return the command that runs ``argv`` and has the kernel send it signal ``number`` (0: none) when we die."""
    helper = (sys.executable, "-I", "-S", str(HELPER), str(int(number)), str(os.getpid()))
    cores = child_core_limit()
    limits = ("" if limit is None else str(limit) for limit in (cores, child_descriptor_limit()))
    return (*helper, str(int("LC_CTYPE" in environment)), str(int(lock_death_signal)), *limits, *argv)


def launch(
    argv: tuple[str, ...], number: int, environment: Mapping[str, str], *, fifo: Path | None, lock_death_signal: bool
) -> tuple[Launched, int]:
    """Start a program in a new session; return the process and the read end of its output, a pipe or the FIFO.

    ``number`` and ``lock_death_signal`` as in `tied_to_parent`. Cleans up before it raises OSError.
    """
    # Without CAP_SYS_ADMIN the lock would take away the rights that a program gains by its file.
    hold = lock_death_signal and not gains_rights(argv[0])
    with contextlib.ExitStack() as undo:
        read, write = os.pipe() if fifo is None else make_fifo(fifo)
        undo.callback(os.close, read)
        try:
            process = subprocess.Popen(
                tied_to_parent(argv, number, environment, lock_death_signal=hold),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                start_new_session=True,
            )
        finally:
            os.close(write)
        undo.callback(process.wait)
        undo.callback(process.kill)
        pidfd = os.pidfd_open(process.pid)
        undo.callback(os.close, pidfd)
        start_time = start_time_of(process.pid) or 0
        undo.pop_all()
    return Launched(process.pid, start_time, pidfd, process.wait), read


def can_run(program: str) -> bool:
    """Return whether it is a file that this user may execute."""
    return Path(program).is_file() and os.access(program, os.X_OK)


def gains_rights(program: str) -> bool:
    """Return whether execve(2) changes its user, group or capabilities, which undoes PR_SET_PDEATHSIG (prctl(2))."""
    with contextlib.suppress(OSError):
        status = Path(program).stat()
        other_user = status.st_mode & stat.S_ISUID and status.st_uid != os.geteuid()
        other_group = status.st_mode & stat.S_ISGID and status.st_gid != os.getegid()
        capable = os.geteuid() != 0 and "security.capability" in os.listxattr(program)
        return bool(other_user or other_group or capable)
    return False
