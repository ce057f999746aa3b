"""One question to one server: a socket, a port and a number of its own, and nothing but its answer is taken."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from typing import TYPE_CHECKING

from kumadp.dns.message import answers

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST = 0xFFFF


class Asked:
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


async def by_udp(server: tuple[str, int], query: bytes, question: bytes, asked: Asked) -> bytes:
    """The answer, its number another one than the query's; raises OSError, and has no deadline.

    The socket is connected, so that only the server's packets arrive; the kernel takes a port by chance.
    """
    loop = asyncio.get_running_loop()
    number = secrets.randbelow(0x10000)
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(server)
        with asked.noted(sock, number):
            sock.send(number.to_bytes(2) + query[2:])
            while True:
                answer = await loop.sock_recv(sock, _LARGEST)
                if answers(answer, number, question):
                    return answer


async def by_tcp(server: tuple[str, int], query: bytes, question: bytes, asked: Asked) -> bytes:
    """The same over TCP; raises OSError, EOFError where it hangs up or says something else."""
    number = secrets.randbelow(0x10000)
    reader, writer = await asyncio.open_connection(*server)
    try:
        with asked.noted(writer.get_extra_info("socket"), number):
            writer.write(len(query).to_bytes(2) + number.to_bytes(2) + query[2:])
            answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        if not answers(answer, number, question):
            raise EOFError("an answer to something else")
        return answer
    finally:
        writer.close()
