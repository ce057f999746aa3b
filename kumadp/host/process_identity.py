"""Identity of a process: a pid may have been reused, so its start time is compared too (proc(5))."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from kumadp.host.descriptors import is_gone

_TICKS = os.sysconf("SC_CLK_TCK")
# Places in what `stat_fields` returns: fields 3 and 22 of proc_pid_stat(5).
_STATE, _START_TIME = 0, 19
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DELETED = " (deleted)"


class ProcessIdentity(msgspec.Struct, frozen=True):
    """One process: ``start_time`` in clock ticks since boot, ``exe`` empty if we may not read it."""

    pid: int
    start_time: int
    uid: int
    exe: str

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_time / _TICKS


def identity_of(pid: int) -> ProcessIdentity | None:
    """Return the living process with this pid; None if there is none, or only a zombie.

    Raises OSError if that cannot be determined, e.g. with too many open files.
    """
    try:
        after_name = stat_fields(Path(f"/proc/{pid}/stat").read_bytes())
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError as error:
        if is_gone(error) or isinstance(error, PermissionError):
            return None
        raise
    if after_name[_STATE] in {b"Z", b"X"}:
        return None
    return ProcessIdentity(pid, int(after_name[_START_TIME]), uid, _exe(pid))


def stat_fields(stat: bytes) -> list[bytes]:
    """Return the fields of proc_pid_stat(5) from the third one on: the name before them may hold any bytes."""
    return stat.rpartition(b")")[2].split()


def start_time_of(pid: int) -> int | None:
    """Return when the process with this pid was started, in clock ticks since boot, also of a zombie; None without one.

    Raises OSError if that cannot be determined.
    """
    try:
        return int(stat_fields(Path(f"/proc/{pid}/stat").read_bytes())[_START_TIME])
    except OSError as error:
        if is_gone(error) or isinstance(error, PermissionError):
            return None
        raise


def _exe(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink()).removesuffix(_DELETED)
    except OSError:
        return ""


def boot_id() -> str:
    """Return the id of this boot of the host: start times are comparable within one boot only.

    Empty if it cannot be read: ProcSubset=pid of systemd.exec(5) hides it, and some sandboxes have none.
    """
    try:
        return BOOT_ID.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
