"""Fallback for an epoch that died while it drained: answers the new epoch in its place.

The next epoch sends its parent the order to end when the drain is over. If nothing listens, it retries for ten seconds
with its main thread blocked, and aborts (Envoy 1.40, measured): the death of the old Envoy would be an outage of the
new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from kumadp.host.net.serve import bind_owner_only

if TYPE_CHECKING:
    from pathlib import Path

# envoy.HotRestartMessage: a length of eight bytes, then field 1 (request) or 2 (reply) with the kind as its field.
_PREFIX = struct.Struct(">Q")
_GET_STATS, _TERMINATE = b"\x1a", b"\x2a"
_NO_STATS = bytes.fromhex("12021a00")
_LONGEST_MESSAGE = 4096
_MESSAGES_PER_TURN = 64


async def answer_as_parent(path: Path, deadline: float) -> bool:
    """Answer at the dead epoch's socket ``path`` until the order to end comes, or for ``deadline`` seconds.

    Returns whether the order came. Raises OSError if the socket cannot be bound.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        await asyncio.to_thread(_bind, sock, path)
        loop = asyncio.get_running_loop()
        is_readable = asyncio.Event()
        loop.add_reader(sock, is_readable.set)
        try:
            async with asyncio.timeout(deadline):
                while True:
                    await is_readable.wait()
                    is_readable.clear()
                    if _answer(sock):
                        return True
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(sock)


def _bind(sock: socket.socket, path: Path) -> None:
    path.unlink(missing_ok=True)
    bind_owner_only(sock, path)
    sock.setblocking(False)


def _answer(sock: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        # The loop reports the socket again while messages are left.
        for _ in range(_MESSAGES_PER_TURN):
            message, sender = sock.recvfrom(_LONGEST_MESSAGE)
            kind = message[_PREFIX.size + 2 : _PREFIX.size + 3]
            if kind == _TERMINATE:
                return True
            if kind == _GET_STATS and sender:
                with contextlib.suppress(OSError):
                    sock.sendto(_PREFIX.pack(len(_NO_STATS)) + _NO_STATS, sender)
    return False
