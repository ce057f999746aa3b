"""Stands in for an epoch that died while it drained.

The next epoch tells its parent to end when its time has come. Where nobody listens it tries again for ten seconds, its
main thread blocked, and aborts (Envoy 1.40, measured): the death of the old would be an outage of the new.
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
_STATS_ASKED, _TERMINATE = b"\x1a", b"\x2a"
_NO_STATS = bytes.fromhex("12021a00")
_MOST = 4096
_BURST = 64


async def answer_as_parent(path: Path, deadline: float) -> bool:
    """Answer at the dead epoch's socket ``path`` until it is told to end, or for ``deadline`` seconds.

    Returns whether it was told. Raises OSError when the socket cannot be bound.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        await asyncio.to_thread(_bind, ours, path)
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_reader(ours, came.set)
        try:
            async with asyncio.timeout(deadline):
                while True:
                    await came.wait()
                    came.clear()
                    if _answer(ours):
                        return True
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(ours)


def _bind(ours: socket.socket, path: Path) -> None:
    path.unlink(missing_ok=True)
    bind_owner_only(ours, path)
    ours.setblocking(False)


def _answer(ours: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        # What is left wakes us again.
        for _ in range(_BURST):
            message, sender = ours.recvfrom(_MOST)
            kind = message[_PREFIX.size + 2 : _PREFIX.size + 3]
            if kind == _TERMINATE:
                return True
            if kind == _STATS_ASKED and sender:
                with contextlib.suppress(OSError):
                    ours.sendto(_PREFIX.pack(len(_NO_STATS)) + _NO_STATS, sender)
    return False
