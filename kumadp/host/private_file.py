"""Files and folders that only we may have written, in folders where another user may have put something.

A folder of another user (root may work in one) can hold symbolic links, hard links and FIFOs with the names
of our files. No link is followed, a FIFO is never waited for, and what is opened is checked before it is read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_PARENT_MODE = 0o755
_FOLDER_MODE = 0o700


class NotOurs(OSError):
    """A file with the name of ours is not one that we wrote; ``strerror`` is the reason."""

    def __init__(self, why: str, path: Path) -> None:
        super().__init__(errno.EPERM, why, str(path))


def pin_folder(folder: Path) -> None:
    """Have `write_private` refuse ``folder`` once another folder has replaced it. Raises OSError."""
    current = folder.stat()
    _pinned[folder] = (current.st_dev, current.st_ino)


def make_folders(path: Path, mode: int = _FOLDER_MODE) -> None:
    """Create a folder with this mode, and its parents with 0755, whatever the umask is; does nothing if it exists.

    Raises OSError.
    """
    if path.is_dir():
        return
    for parent in reversed([parent for parent in path.parents if not parent.exists()]):
        _make_folder(parent, _PARENT_MODE)
    _make_folder(path, mode)


def _make_folder(path: Path, mode: int) -> None:
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    # mkdir(2) takes the umask off the mode. O_PATH needs no right on the folder, and follows no link that replaced it.
    folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        Path(f"/proc/self/fd/{folder}").chmod(mode)
    finally:
        os.close(folder)


def make_own_folder(path: Path) -> None:
    """Create a folder in one of ours, or check that it is no link and belongs to us or to the owner of its parent.

    Raises OSError.
    """
    make_folders(path)
    folder = path.lstat()
    if not stat.S_ISDIR(folder.st_mode):
        raise NotOurs("it is not a folder", path)
    if folder.st_uid not in {os.geteuid(), path.parent.stat().st_uid}:
        raise NotOurs("it belongs to another user", path)


def write_private(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a file, mode 0600, by a rename: a reader sees the old or the new content, never a part. May block.

    Both names are looked up in the same folder, which may not be a link. ``sync``: flush it to the disk before the
    rename. Raises OSError.
    """
    with _folder_of(path) as folder:
        beside = path.name + ".new"
        _unlink(beside, folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(beside, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                # The umask may have taken away what the owner needs.
                os.fchmod(handle, 0o600)
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(handle)
            os.replace(beside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with contextlib.suppress(OSError):
                _unlink(beside, folder)
            raise


def write_json(path: Path, value: object) -> Path:
    """Write a value of JSON types or a msgspec Struct as JSON, which is YAML too, as `write_private` does.

    Returns ``path``. Raises OSError.
    """
    write_private(path, json.dumps(value, indent=1, default=msgspec.to_builtins).encode() + b"\n")
    return path


def read_private(path: Path, largest: int, *, private: bool = True) -> bytes:
    """Return the content of a regular file that belongs to us, of at most ``largest`` bytes. May block.

    ``private``: nobody else may read or write it. Raises NotOurs for anything else in its place, and OSError.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if why := why_not_ours(status, 0o077 if private else 0o022):
            raise NotOurs(why, path)
        if status.st_size > largest:
            raise NotOurs(f"it is larger than {largest} bytes", path)
        # Not `largest`: so much would be allocated.
        return file.read(min(status.st_size + 1, largest))


def open_own_fifo(path: Path, access: int) -> int:
    """Open a FIFO that belongs to us, closed-on-exec, without waiting for a process at its other end.

    ``access`` is O_RDONLY or O_RDWR. Raises NotOurs for anything else in its place, and OSError.
    """
    # Opening a device may have an effect, so it is refused before.
    if why := _why_no_fifo(path.lstat()):
        raise NotOurs(why, path)
    handle = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if why := _why_no_fifo(os.fstat(handle)):
        os.close(handle)
        raise NotOurs(why, path)
    return handle


def _why_no_fifo(status: os.stat_result) -> str:
    if not stat.S_ISFIFO(status.st_mode):
        return "it is not a FIFO"
    return "" if status.st_uid == os.geteuid() else "it belongs to another user"


def why_not_ours(status: os.stat_result, forbidden: int, owners: Collection[int] = ()) -> str:
    """Return why a file cannot be one that we wrote; an empty text if it can.

    ``forbidden`` are bits of the mode; ``owners`` may own it, by default only our own user.
    """
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if status.st_uid not in (owners or {os.geteuid()}):
        return "it belongs to another user"
    if status.st_nlink > 1:
        return "it has a second name (hard link)"
    if stat.S_IMODE(status.st_mode) & forbidden:
        return "other users could read or change it"
    return ""


@contextlib.contextmanager
def _folder_of(path: Path) -> Iterator[int]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        identity = (os.fstat(folder).st_dev, os.fstat(folder).st_ino)
        if _pinned.get(path.parent, identity) != identity:
            raise NotOurs("another folder has taken its place", path.parent)
        yield folder
    finally:
        os.close(folder)


def _unlink(name: str, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


_pinned: dict[Path, tuple[int, int]] = {}
