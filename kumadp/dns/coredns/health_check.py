"""One question to a name server on loopback, to see whether it answers at all."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import struct
from typing import TYPE_CHECKING

from kumadp.host.descriptors import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Awaitable

_HEADER = struct.Struct("!HHHHHH")
_LARGEST = 512
# "Not implemented" is the answer of a server that lives, whatever it was configured to do (RFC 1035 4.1.1).
_STATUS = 2 << 11


async def answers(port: int, name: str = "", *, deadline: float, host: str = "127.0.0.1") -> str:
    """What is missing, in a few words: an answer by UDP, by TCP, within ``deadline`` seconds each; empty: nothing.

    ``name`` is one that the server answers by itself. Without one it is asked for its status, which no server tells:
    any other question might have it ask others, and they may be those who are silent. Raises OSError where this process
    has no descriptor left to ask with.
    """
    ask_udp, ask_tcp = _by_udp(host, port, name), _by_tcp(host, port, name)
    udp, tcp = await asyncio.gather(_within(deadline, ask_udp), _within(deadline, ask_tcp))
    return " and ".join(kind for kind, there in (("UDP", udp), ("TCP", tcp)) if not there)


async def _within(deadline: float, asking: Awaitable[bool]) -> bool:
    try:
        async with asyncio.timeout(deadline):
            return await asking
    except (OSError, EOFError, TimeoutError) as error:
        if is_exhausted(error):
            raise
        return False


async def _by_udp(host: str, port: int, name: str) -> bool:
    loop = asyncio.get_running_loop()
    query = _query(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect((host, port))
        await loop.sock_sendall(client, query)
        # What answers another question is not waited for in vain: there is a deadline.
        while not _is_answer(query, await _receive(client)):
            pass
        return True


async def _receive(client: socket.socket) -> bytes:
    # What waits already is received without a turn of the loop: a flood would hold it.
    await asyncio.sleep(0)
    return await asyncio.get_running_loop().sock_recv(client, _LARGEST)


async def _by_tcp(host: str, port: int, name: str) -> bool:
    query = _query(name)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(struct.pack("!H", len(query)) + query)
        length = int.from_bytes(await reader.readexactly(2))
        return _is_answer(query, await reader.readexactly(min(length, _LARGEST)))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _query(name: str) -> bytes:
    number = secrets.randbelow(65536)
    if not name:
        return _HEADER.pack(number, _STATUS, 0, 0, 0, 0)
    labels = b"".join(bytes([len(label)]) + label for label in name.encode("ascii").split(b"."))
    return _HEADER.pack(number, 0, 1, 0, 0, 0) + labels + b"\x00" + struct.pack("!HH", 1, 1)


def _is_answer(query: bytes, answer: bytes) -> bool:
    """Any code is an answer (RFC 1035 4.1.1) to this number and, where it is there, this question (RFC 5452, 9.1)."""
    if len(answer) < _HEADER.size or answer[:2] != query[:2] or not answer[2] & 0x80:
        return False
    asked, theirs = query[_HEADER.size :], answer[_HEADER.size : len(query)]
    return answer[4:6] == b"\x00\x00" or (theirs[:-4].lower(), theirs[-4:]) == (asked[:-4].lower(), asked[-4:])
