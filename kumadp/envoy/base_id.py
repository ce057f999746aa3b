"""Files that the epochs of one base id share on this host: sockets, base id, shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import re
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.envoy.argv import EpochArguments
from kumadp.errors import WorkDirError
from kumadp.host.private_file import read_private, write_private
from kumadp.host.work_dir import BASE_ID_SUFFIX, HOT_RESTART_PREFIX, reporting_write_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = struct.Struct("=QQ")
_FLAGS = struct.Struct("=Q")
_INITIALIZING = 1
# Envoy appends a role and a number of up to 20 digits; sun_path ends after 107 (unix(7)).
_LONGEST_SUFFIX = len("_udp_parent_18446744073709551615")
_LONGEST_PATH = 107
# What the sign of a 32-bit number adds to its name.
_SIGN, _DIGITS = 2**64 - 2**32, 20
# Sizes of the shared memory and of a 32-bit number as text (bytes).
_SHARED_SIZE = 104
_LONGEST_BASE_ID = 32


class SharedMemory(Struct, frozen=True):
    """Shared memory of hot restart: the directory of shm_open(3), and the only layout in which a flag may be cleared.

    ``layout`` is version 11 with 104 bytes, flags in the last eight (Envoy 1.28 to 1.40).
    """

    directory: Path = Path("/dev/shm")  # noqa: S108
    layout: str = "11.104"

    def of(self, base_id: int) -> Path:
        """Return the file of a base id."""
        return self.directory / f"envoy_shared_memory_{base_id * 10}"


_DEFAULT_MEMORY = SharedMemory()
LOCKED = "an epoch that ended too early has locked hot restart"


class BaseIdFiles:
    """The files of one base id, ``h<serial>`` in kumadp's directory. All methods may block for a moment."""

    def __init__(self, directory: Path, serial: int, memory: SharedMemory = _DEFAULT_MEMORY) -> None:
        self.serial = serial
        self._memory = memory
        self._base_id: int | None = None
        self.sockets = directory / f"{HOT_RESTART_PREFIX}{serial}"
        self.base_id_file = directory / f"{HOT_RESTART_PREFIX}{serial}{BASE_ID_SUFFIX}"
        if len(os.fsencode(self.sockets)) + _LONGEST_SUFFIX > _LONGEST_PATH:
            raise WorkDirError(
                f"{directory} is too long for Envoy's hot restart sockets", "choose a shorter --work-dir"
            )

    def base_id(self) -> int | None:
        """Return the base id that Envoy chose at epoch 0, None before that.

        It is remembered: the directory may be taken away, and the shared memory is to be removed all the same.
        """
        with contextlib.suppress(OSError, ValueError):
            self._base_id = int(read_private(self.base_id_file, _LONGEST_BASE_ID, private=False))
        return self._base_id

    def arguments(self, epoch: int, parent_shutdown: float, workers: int | None) -> EpochArguments:
        """Return the arguments of an epoch on this base id; see `EpochArguments`."""
        base_id = self.base_id() if epoch else None
        return EpochArguments(epoch, base_id, self.base_id_file, self.sockets, parent_shutdown, workers)

    def parent_socket(self, epoch: int) -> Path | None:
        """Return the socket at which the next epoch reaches this one; None without a base id."""
        # Envoy 1.40 names it by ten times the base id plus the epoch modulo 3, with the sign of a 32-bit number.
        base = self.base_id()
        if base is None:
            return None
        number = base * 10
        if number >= 2**31:
            number += _SIGN
        return self.sockets.with_name(f"{self.sockets.name}_parent_{number + epoch % 3}")

    def unlock(self) -> bool:
        """Allow another epoch after one that ended before it was LIVE; returns False if that cannot be done.

        Envoy refuses it ("previous envoy process is still initializing") by a flag that the dead epoch left behind.
        Only for the supported layout, and only once that epoch has ended and the current one is LIVE.
        """
        with contextlib.suppress(OSError, ValueError), self._mapped() as memory:
            flags = _FLAGS.unpack_from(memory, len(memory) - _FLAGS.size)[0]
            _FLAGS.pack_into(memory, len(memory) - _FLAGS.size, flags & ~_INITIALIZING)
            return True
        return False

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[mmap.mmap]:
        handle = os.open(self._shared_memory(), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
            version, size = (int(part) for part in self._memory.layout.split("."))
            if status.st_uid != os.geteuid() or status.st_size != size:
                raise ValueError("not ours")
            with mmap.mmap(handle, size) as memory:
                if _HEADER.unpack_from(memory) != (size, version):
                    raise ValueError("another layout")
                yield memory
        finally:
            os.close(handle)

    def _shared_memory(self) -> Path:
        base = self.base_id()
        if base is None:
            raise FileNotFoundError(self.base_id_file)
        return self._memory.of(base)

    def _base_ids(self) -> set[int]:
        """Return the base id; if Envoy ended before it had written it, those in the names of its sockets."""
        base = self.base_id()
        if base is not None:
            return {base}
        names = (path.name.rpartition("_")[2] for path in self.sockets.parent.glob(f"{self.sockets.name}_parent_*"))
        numbers = {int(name) for name in names if name.isascii() and name.isdecimal() and len(name) <= _DIGITS}
        return {(number - _SIGN if number > _SIGN else number) // 10 for number in numbers}

    def clean(self) -> None:
        """Remove all files, once no epoch of this base id runs."""
        for base in self._base_ids():
            with contextlib.suppress(OSError):
                shared = self._memory.of(base)
                if shared.lstat().st_uid == os.geteuid():
                    shared.unlink()
        for path in self._files():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        sockets = self.sockets.parent.glob(f"{self.sockets.name}_*")
        # The base id last: the rest is looked up with it.
        return [*sockets, self.base_id_file]

    def is_in_use(self) -> bool:
        """Return whether an epoch still listens."""
        for path in self.sockets.parent.glob(f"{self.sockets.name}_parent_*"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client, contextlib.suppress(OSError):
                client.connect(str(path))
                return True
        return False


async def new_base_id(
    directory: Path, previous: BaseIdFiles | None, *, in_use: bool, memory: SharedMemory = _DEFAULT_MEMORY
) -> BaseIdFiles:
    """Prepare the files of the next base id in ``directory``; those of ``previous`` are removed unless ``in_use``.

    Raises WorkDirError, also if there can be no shared memory: Envoy would abort (1.40).
    """
    if previous is None:
        files = BaseIdFiles(directory, await asyncio.to_thread(sweep, directory, memory), memory)
    else:
        if not in_use:
            await asyncio.to_thread(previous.clean)
        files = BaseIdFiles(directory, previous.serial + 1, memory)
    await asyncio.to_thread(_prepare, files, memory.directory)
    return files


def _prepare(files: BaseIdFiles, shared: Path) -> None:
    test_file = shared / f"kumadp_{os.getpid()}"
    try:
        write_private(test_file, b"\0" * _SHARED_SIZE, sync=False)
        test_file.unlink()
    except OSError as error:
        raise WorkDirError(
            f"Envoy's hot restart needs shared memory, and {shared} cannot be written: {error.strerror}"
        ) from None
    # Created first: Envoy would follow a link that another user has put there.
    with reporting_write_errors(files.base_id_file):
        write_private(files.base_id_file, b"", sync=False)


def sweep(directory: Path, memory: SharedMemory = _DEFAULT_MEMORY, *, killed: bool = False) -> int:
    """Remove the files of dead runs in ``directory``; returns the first free serial number. May block.

    ``killed``: no Envoy there goes on, though some may not have ended yet.
    """
    free = 0
    for path in directory.glob(f"{HOT_RESTART_PREFIX}*{BASE_ID_SUFFIX}"):
        if match := re.fullmatch(rf"{HOT_RESTART_PREFIX}(\d+)\{BASE_ID_SUFFIX}", path.name):
            files = BaseIdFiles(directory, int(match[1]), memory)
            if not killed and files.is_in_use():
                free = max(free, files.serial + 1)
            else:
                files.clean()
    return free
