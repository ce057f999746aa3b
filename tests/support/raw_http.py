"""Raw HTTP/1.1 over sockets: what a server sends to given bytes, and an application that sends given bytes."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

DEADLINE = 20.0


@dataclass(frozen=True)
class RawResponse:
    """One response: status, fields but the date with lower-case names, sorted, and body."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes


async def send_raw(port: int, pieces: Sequence[bytes], *, end: bool = False) -> bytes:
    """Return all that a server sends to these pieces, with a pause between them, until it closes the connection.

    ``end``: the client's side ends after them.
    """
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.01)
            if end:
                writer.write_eof()
            with contextlib.suppress(ConnectionResetError):
                return await reader.read()
            return b"reset"
        finally:
            writer.close()


def responses(data: bytes, *, to_head: bool = False) -> list[RawResponse]:
    """Parse the responses of a server whose bodies have a stated length."""
    result = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        fields.pop("date", None)
        length = 0 if to_head else int(fields.get("content-length", "0"))
        result.append(RawResponse(int(first.split()[1]), tuple(sorted(fields.items())), data[:length]))
        data = data[length:]
    return result


@contextlib.asynccontextmanager
async def scripted_application(*pieces: bytes, reset: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """An application that reads a head, then sends the pieces and closes; yields its port and the heads."""
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        if reset:
            writer.transport.abort()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heads
    finally:
        server.close()
        await server.wait_closed()
