"""One HTTP request over a socket that is not trusted: one deadline and one size limit for the whole response.

Nothing is sent to a Unix socket before its folder, its file and the listening process are verified to be one user's.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.errors import on_one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LARGEST_BODY = 2 << 20
_LARGEST_HEAD = 16 << 10
_CREDENTIALS = struct.Struct("3i")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,10})[ \t]*\r?\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)


class UntrustedSocket(OSError):
    """A socket that may be another user's; the message names the user or the problem."""


class Peer(Struct, frozen=True):
    """The process that listens on a Unix socket (SO_PEERCRED, unix(7)); ``pid`` 0 in another PID namespace."""

    pid: int
    uid: int


def peer_of(sock: socket.socket) -> Peer:
    """Return the process at the other end."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)


def owner_of(path: Path) -> int:
    """Return the user that owns this socket: the file and, unless that is root, its folder.

    Raises OSError, UntrustedSocket among them.

    No symbolic link is followed in the last two parts of the path, and nobody else may write in the folder.
    """
    with _folder(path) as (descriptor, _):
        return _owner(path, descriptor)


@contextlib.contextmanager
def connected(path: Path, uid: int, timeout: float) -> Iterator[tuple[socket.socket, Peer]]:
    """Yield a connection to a socket that belongs to the user ``uid`` (`owner_of`), as its listener does.

    Raises OSError, UntrustedSocket among them. Connects within ``timeout`` seconds; sends nothing.
    """
    with _folder(path) as (descriptor, short), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        owner = _owner(path, descriptor)
        if owner != uid:
            raise UntrustedSocket(f"{_shown(path)} belongs to {user_name(owner)}")
        sock.settimeout(timeout)
        try:
            # The folder that was checked, wherever its path leads by now.
            sock.connect(short)
        except FileNotFoundError:
            sock.connect(str(path))
        peer = peer_of(sock)
        if peer.uid != uid:
            raise UntrustedSocket(f"{_shown(path)} is served by a process of {user_name(peer.uid)}")
        yield sock, peer


def user_name(uid: int) -> str:
    """Return ``user alice``, or ``uid 1000`` if the user has no name. May block."""
    import pwd

    try:
        return f"user {on_one_line(pwd.getpwuid(uid).pw_name)}"
    except (KeyError, OSError):
        return f"uid {uid}"


def exchange(
    sock: socket.socket, method: str, target: str, deadline: float, *, host: str = "localhost", head_only: bool = False
) -> tuple[int, bytes]:
    """Return status code and body of the response to one request; with ``head_only`` the body is not read.

    The whole response must arrive before ``deadline``, a time of `time.monotonic`. Raises OSError, TimeoutError among
    them, if it does not, has more than `LARGEST_BODY` bytes, or is not HTTP/1.
    """
    sock.settimeout(_remaining(deadline))
    sock.sendall(f"{method} {target} HTTP/1.1\r\nhost: {host}\r\naccept: */*\r\nconnection: close\r\n\r\n".encode())
    reader = _Reader(sock, deadline)
    code, head = reader.head()
    if head_only or code in {204, 304}:
        return code, b""
    if _CHUNKED.search(head):
        return code, _unchunked(reader.rest())
    length = _LENGTH.search(head)
    return code, reader.exactly(int(length[1])) if length else reader.rest()


class _Reader:
    """Reads a response, limited in time and bytes."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._data = bytearray()

    def head(self) -> tuple[int, bytes]:
        """Return status code and head of the first response that is not provisional (RFC 9110 section 15.2)."""
        read = 0
        while True:
            end = self._end_of_head()
            head = bytes(self._data[:end])
            status_line = _STATUS_LINE.match(head)
            if status_line is None:
                raise OSError("the answer is not HTTP")
            del self._data[:end]
            read += end
            if not 100 <= int(status_line[1]) < 200:
                return int(status_line[1]), head
            if read > _LARGEST_HEAD:
                raise OSError("the answer is not HTTP")

    def _end_of_head(self) -> int:
        searched = 0
        while (end := self._data.find(b"\r\n\r\n", searched)) < 0:
            if len(self._data) > _LARGEST_HEAD or not b"HTTP/1.".startswith(bytes(self._data[:7])):
                raise OSError("the answer is not HTTP")
            searched = max(0, len(self._data) - 3)
            if not self._more():
                raise OSError("the answer ends early" if self._data else "closed without an answer")
        return end + 4

    def exactly(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        if length > LARGEST_BODY:
            raise OSError(f"the answer is larger than {LARGEST_BODY >> 20} MiB")
        while len(self._data) < length:
            if not self._more():
                raise OSError("the answer ends early")
        return bytes(self._data[:length])

    def rest(self) -> bytes:
        """Return all bytes until the peer closes."""
        while self._more():
            pass
        return bytes(self._data)

    def _more(self) -> bool:
        self._sock.settimeout(_remaining(self._deadline))
        part = self._sock.recv(64 << 10)
        self._data += part
        if len(self._data) > LARGEST_BODY + _LARGEST_HEAD:
            raise OSError(f"the answer is larger than {LARGEST_BODY >> 20} MiB")
        return bool(part)


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining


def _unchunked(data: bytes) -> bytes:
    """Decode a chunked body (RFC 9112 section 7.1), without its trailers."""
    parts: list[bytes] = []
    position = 0
    while True:
        end = data.find(b"\r\n", position, position + 64)
        size = data[position:end].partition(b";")[0].strip() if end >= 0 else b""
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", size):
            raise OSError("the answer is not HTTP")
        start, length = end + 2, int(size, 16)
        if not length:
            return b"".join(parts)
        if start + length + 2 > len(data):
            raise OSError("the answer ends early")
        parts.append(data[start : start + length])
        position = start + length + 2


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the folder, and a path of the file that goes through it."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor, f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def _owner(path: Path, folder: int) -> int:
    status = os.fstat(folder)
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise UntrustedSocket(f"{_shown(path.parent)} can be written by others")
    file = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISSOCK(file.st_mode):
        raise UntrustedSocket(f"{_shown(path)} is not a socket")
    if status.st_uid not in {0, file.st_uid}:
        raise UntrustedSocket(f"{_shown(path.parent)} belongs to {user_name(status.st_uid)}")
    return file.st_uid


def _shown(path: Path) -> str:
    return on_one_line(str(path))
