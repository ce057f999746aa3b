"""One question to one server: a socket, a port and a number of its own, and nothing but its answer is taken."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from typing import TYPE_CHECKING

from kumadp.addresses import socket_address
from kumadp.dns.message import answers

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST = 0xFFFF
# How long an answer in the same letters is waited for once there is one in others (seconds).
_SAME_LETTERS_WITHIN = 0.05
# So many messages that are no answer to it are read from one connection.
_MOST_OTHERS = 64


class SentQueries:
    """What we ask of others now, to know it again when it comes back to us."""

    def __init__(self) -> None:
        self._now: set[tuple[int, int]] = set()

    def knows(self, port: int, number: int) -> bool:
        """Whether a query from this port with this number is our own."""
        return (port, number) in self._now

    @contextlib.contextmanager
    def noted(self, sock: socket.socket, number: int) -> Iterator[None]:
        """In here the socket has asked."""
        key = (sock.getsockname()[1], number)
        self._now.add(key)
        try:
            yield
        finally:
            self._now.discard(key)


async def query_udp(server: tuple[str, int], query: bytes, question: bytes, asked: SentQueries) -> bytes:
    """The answer, its number another one than the query's; raises OSError, and has no deadline.

    The socket is connected, so that only the server's packets arrive; the kernel takes a port by chance. An answer to
    the name in other letters is taken too, as there are servers that write it in their own, but one in the same
    letters, which is harder to forge, goes before it.
    """
    number = secrets.randbelow(0x10000)
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(socket_address(*server))
        with asked.noted(sock, number):
            sock.send(number.to_bytes(2) + query[2:])
            while not answers(answer := await _receive(sock), number, question):
                if answers(answer, number, question, any_case=True):
                    return await _same_letters(sock, number, question) or answer
            return answer


async def _receive(sock: socket.socket) -> bytes:
    # What waits already is received without a turn of the loop: a flood of wrong answers would hold it.
    await asyncio.sleep(0)
    return await asyncio.get_running_loop().sock_recv(sock, _LARGEST)


async def _same_letters(sock: socket.socket, number: int, question: bytes) -> bytes | None:
    try:
        async with asyncio.timeout(_SAME_LETTERS_WITHIN):
            while not answers(answer := await _receive(sock), number, question):
                pass
            return answer
    except (TimeoutError, OSError):
        return None


async def query_tcp(server: tuple[str, int], query: bytes, question: bytes, asked: SentQueries) -> bytes:
    """The same over TCP; raises OSError, and EOFError where it hangs up or sends much that is no answer."""
    number = secrets.randbelow(0x10000)
    socket_address(*server)
    reader, writer = await asyncio.open_connection(*server)
    try:
        with asked.noted(writer.get_extra_info("socket"), number):
            writer.write(len(query).to_bytes(2) + number.to_bytes(2) + query[2:])
            for _ in range(_MOST_OTHERS):
                answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                if answers(answer, number, question, any_case=True):
                    return answer
        raise EOFError("answers to something else")
    finally:
        writer.close()
