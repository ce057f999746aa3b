"""One query to one server, with its own socket, port and number; other answers are ignored."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from typing import TYPE_CHECKING

from kumadp.addresses import socket_address
from kumadp.dns.message import is_answer, with_number

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from typing import Any

_LARGEST = 0xFFFF
# How long to wait for an answer in the same letter case after one in another case (seconds).
_SAME_CASE_WITHIN = 0.05
# Messages on one connection that may answer something else.
_MOST_OTHERS = 64
# After a stall of the loop, an answer that is in the socket is taken within this many turns.
_TURNS_TO_READ = 4


class SentQueries:
    """The queries that this process has sent and that have no answer yet, to detect forwarding loops."""

    def __init__(self) -> None:
        self._pending: set[tuple[int, int]] = set()

    def includes(self, port: int, number: int) -> bool:
        """Return whether a query from this source port with this number is our own."""
        return (port, number) in self._pending

    @contextlib.contextmanager
    def sent(self, sock: socket.socket, number: int) -> Iterator[None]:
        """Register the query with this number from this socket until the end of the block."""
        key = (sock.getsockname()[1], number)
        self._pending.add(key)
        try:
            yield
        finally:
            self._pending.discard(key)


async def answer_within(seconds: float, query: Coroutine[Any, Any, bytes]) -> bytes:
    """Return the answer of a query, which is cancelled after ``seconds``; raises TimeoutError, or what it raises.

    An answer that arrived in time is returned even if the loop was busy until the time was over, e.g. with the imports
    of a program that starts: `asyncio.timeout` would discard it.
    """
    task = asyncio.create_task(query)
    try:
        await asyncio.wait({task}, timeout=seconds)
        for _ in range(_TURNS_TO_READ):
            if task.done():
                return task.result()
            await asyncio.sleep(0)
        raise TimeoutError
    finally:
        if not task.cancel() and not task.cancelled():
            # Otherwise it is logged if nobody is interested any more.
            task.exception()


async def query_udp(server: tuple[str, int], query: bytes, question: bytes, sent_queries: SentQueries) -> bytes:
    """Send a query by UDP under a random number and return the answer, which has that number.

    The socket is connected, so that only packets of the server arrive; the kernel chooses a random port. An answer
    whose name differs in letter case is accepted, as some servers normalize it, but one in the same case, which is
    harder to forge, is preferred.

    Raises OSError; it has no deadline.
    """
    number = secrets.randbelow(0x10000)
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(socket_address(*server))
        with sent_queries.sent(sock, number):
            sock.send(with_number(query, number))
            while not is_answer(answer := await _receive(sock), number, question):
                if is_answer(answer, number, question, any_case=True):
                    return await _same_case_answer(sock, number, question) or answer
            return answer


async def _receive(sock: socket.socket) -> bytes:
    # sock_recv does not yield if a packet is ready: a flood of wrong answers would block the loop.
    await asyncio.sleep(0)
    return await asyncio.get_running_loop().sock_recv(sock, _LARGEST)


async def _same_case_answer(sock: socket.socket, number: int, question: bytes) -> bytes | None:
    try:
        async with asyncio.timeout(_SAME_CASE_WITHIN):
            while not is_answer(answer := await _receive(sock), number, question):
                pass
            return answer
    except (TimeoutError, OSError):
        return None


async def query_tcp(server: tuple[str, int], query: bytes, question: bytes, sent_queries: SentQueries) -> bytes:
    """Send a query by TCP under a random number and return the answer, which has that number.

    Raises OSError, and EOFError if the server closes the connection or sends many answers to other queries.
    """
    number = secrets.randbelow(0x10000)
    socket_address(*server)
    reader, writer = await asyncio.open_connection(*server)
    try:
        with sent_queries.sent(writer.get_extra_info("socket"), number):
            writer.write(len(query).to_bytes(2) + with_number(query, number))
            for _ in range(_MOST_OTHERS):
                answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                if is_answer(answer, number, question, any_case=True):
                    return answer
        raise EOFError("the server answers other queries only")
    finally:
        writer.close()
