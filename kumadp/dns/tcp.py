"""DNS over TCP (RFC 7766): many queries on a connection, answered as they are ready, and bounds to all of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from kumadp.dns.udp import Client

IDLE = 10.0
"""A connection without a query is closed after so many seconds (RFC 7766 6.2.3)."""
MOST_CONNECTIONS = 256
MOST_AT_ONCE = 64
_WRITE_WITHIN = 5.0


class TcpServer:
    """Serves on a listening socket; ``answer`` gets a query and its client, and gives the answer, None for none.

    A client that sends queries faster than they are answered is read from no further; one that does not read answers
    is hung up on.
    """

    def __init__(self, sock: socket.socket, answer: Callable[[bytes, Client], Awaitable[bytes | None]]) -> None:
        self.socket = sock
        self._answer = answer
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._connected, sock=self.socket)

    async def close(self) -> None:
        """Accept no more, and hang up."""
        if self._server is not None:
            self._server.close()
        self.socket.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio makes one for each connection
        self._connections.add(task)
        answering: set[asyncio.Task[None]] = set()
        try:
            await self._serve(reader, writer, answering)
        except (OSError, EOFError, TimeoutError):
            pass
        except asyncio.CancelledError:
            # Only `close` cancels, and asyncio would tell it as an error of the connection.
            pass
        finally:
            self._connections.discard(task)
            for one in answering:
                one.cancel()
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answering: set[asyncio.Task[None]]
    ) -> None:
        client: Client = writer.get_extra_info("peername")
        if not client:
            return
        room = asyncio.Semaphore(MOST_AT_ONCE)

        async def one(query: bytes) -> None:
            try:
                reply = await self._answer(query, client)
                if reply is not None:
                    writer.write(len(reply).to_bytes(2) + reply)
            finally:
                room.release()

        try:
            while True:
                async with asyncio.timeout(IDLE):
                    query = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                await room.acquire()
                task = asyncio.create_task(one(query))
                answering.add(task)
                task.add_done_callback(answering.discard)
                async with asyncio.timeout(_WRITE_WITHIN):
                    await writer.drain()
        except (EOFError, TimeoutError):
            # Who has said all may still wait for answers.
            if answering:
                await asyncio.wait(set(answering))
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(_WRITE_WITHIN):
                    await writer.drain()
