"""Checks that a name server on loopback answers, by UDP and by TCP."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from typing import TYPE_CHECKING

from kumadp.dns.message import HEADER, encode_query, encode_status_query, lower_question, question_of
from kumadp.host.descriptors import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Awaitable

_LARGEST = 512


async def missing_transports(port: int, name: str = "", *, deadline: float, host: str = "127.0.0.1") -> str:
    """Query a name server by UDP and TCP and return the transports without an answer, as "UDP and TCP"; empty: none.

    Both have ``deadline`` seconds. ``name`` is one that the server answers without querying others. If it is empty,
    the query has opcode STATUS, which no server forwards: any question could be forwarded to servers that are silent
    themselves. "Not implemented" is the answer of a running server, whatever its configuration (RFC 1035 4.1.1).

    Raises OSError if this process has no file descriptor left for the query.
    """
    queries = _answers_by_udp(host, port, name), _answers_by_tcp(host, port, name)
    udp, tcp = await asyncio.gather(*(_within(deadline, query) for query in queries))
    return " and ".join(transport for transport, answers in (("UDP", udp), ("TCP", tcp)) if not answers)


async def _within(deadline: float, query: Awaitable[bool]) -> bool:
    try:
        async with asyncio.timeout(deadline):
            return await query
    except (OSError, EOFError, TimeoutError) as error:
        if is_exhausted(error):
            raise
        return False


async def _answers_by_udp(host: str, port: int, name: str) -> bool:
    loop = asyncio.get_running_loop()
    query = _encode(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect((host, port))
        await loop.sock_sendall(client, query)
        # Answers to other queries are ignored until the deadline.
        while not _is_answer(query, await _receive(client)):
            pass
        return True


async def _receive(client: socket.socket) -> bytes:
    # sock_recv does not yield if a packet is ready: a flood would block the loop.
    await asyncio.sleep(0)
    return await asyncio.get_running_loop().sock_recv(client, _LARGEST)


async def _answers_by_tcp(host: str, port: int, name: str) -> bool:
    query = _encode(name)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(len(query).to_bytes(2) + query)
        length = int.from_bytes(await reader.readexactly(2))
        return _is_answer(query, await reader.readexactly(min(length, _LARGEST)))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _encode(name: str) -> bytes:
    number = secrets.randbelow(0x10000)
    return encode_query(name, number=number, recursion=False) if name else encode_status_query(number)


def _is_answer(query: bytes, answer: bytes) -> bool:
    """Accept any code (RFC 1035 4.1.1) with the number of the query and, if present, its question (RFC 5452, 9.1)."""
    if len(answer) < HEADER.size or answer[:2] != query[:2] or not answer[2] & 0x80:
        return False
    answered = answer[HEADER.size : len(query)]
    return answer[4:6] == b"\x00\x00" or lower_question(answered) == lower_question(question_of(query))
