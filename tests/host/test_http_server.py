"""Clients that take too long, on a real socket; the limits are Kuma 2.14's, the tests' are shorter."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from aiohttp import web

from kumadp.host.net.acceptor import Acceptor
from kumadp.host.net.connection_limit import ConnectionLimit
from kumadp.host.net.http_server import HttpServer
from kumadp.host.net.serve import bind_tcp
from kumadp.host.net.time_limits import TimeLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONG = 60.0
DEADLINE = 20.0
REQUEST = b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n"


@contextlib.asynccontextmanager
async def served(
    limits: TimeLimits, *, body: bytes = b"ok", abandon: bool = False, limit: ConnectionLimit | None = None
) -> AsyncIterator[tuple[int, list[str]]]:
    reported: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        reported.append(request.path)
        if request.path == "/slow":
            try:
                await asyncio.sleep(DEADLINE * 2)
            except asyncio.CancelledError:
                reported.append("abandoned")
                raise
        return web.Response(body=body)

    def on_connect(_connection: object) -> None:
        pass

    def on_first_request(_connection: object) -> None:
        reported.append("on_first_request")

    sock = bind_tcp("127.0.0.1", 0, "test")
    limit = limit or ConnectionLimit.for_socket("test", sock)
    server = HttpServer(answer, on_connect, on_first_request, limit, limits=limits, abandon=abandon)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    acceptor = Acceptor(sock, limit, server.connection)
    acceptor.open()
    try:
        yield sock.getsockname()[1], reported
    finally:
        acceptor.stop()
        await runner.cleanup()
        sock.close()


def test_the_limits_are_those_of_the_readiness_reporter() -> None:
    assert TimeLimits() == TimeLimits(head=1.0, write=30.0, idle=120.0, body=10.0)


async def test_a_client_that_sends_nothing_or_half_a_head_is_disconnected_after_a_while() -> None:
    async with asyncio.timeout(DEADLINE), served(TimeLimits(0.05, LONG, LONG)) as (port, reported):
        for sent in (b"", REQUEST[:10]):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert await reader.read() == b""
            writer.close()
        assert "/ready" not in reported


async def test_a_second_head_must_end_too_and_silence_between_two_may_last_longer() -> None:
    async with asyncio.timeout(DEADLINE), served(TimeLimits(0.05, LONG, LONG)) as (port, reported):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        assert b"200" in await reader.readuntil(b"ok")
        # Longer than a head may take.
        await asyncio.sleep(0.3)
        writer.write(REQUEST)
        assert b"200" in await reader.readuntil(b"ok")
        writer.write(REQUEST[:10])
        assert await reader.read() == b""
        writer.close()
        assert reported.count("/ready") == 2


async def test_a_connection_that_is_idle_for_too_long_ends() -> None:
    async with asyncio.timeout(DEADLINE), served(TimeLimits(LONG, LONG, 0.05)) as (port, _reported):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await reader.readuntil(b"ok")
        assert await reader.read() == b""
        writer.close()


async def test_a_client_that_does_not_read_is_disconnected() -> None:
    async with asyncio.timeout(DEADLINE), served(TimeLimits(LONG, 0.2, LONG), body=bytes(64 << 20)) as (port, reported):
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, REQUEST)
            # Once for the request, once for the end.
            while reported.count("on_first_request") < 2:
                await asyncio.sleep(0.01)
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while part := await loop.sock_recv(client, 1 << 20):
                    got += len(part)
            assert got < 64 << 20


async def test_a_handler_may_be_abandoned_with_its_client() -> None:
    async with asyncio.timeout(DEADLINE), served(TimeLimits(LONG, LONG, LONG), abandon=True) as (port, reported):
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST.replace(b"/ready", b"/slow"))
        while "/slow" not in reported:
            await asyncio.sleep(0.01)
        writer.close()
        while "abandoned" not in reported:
            await asyncio.sleep(0.01)


async def test_the_server_is_not_named() -> None:
    async with asyncio.timeout(DEADLINE), served(TimeLimits()) as (port, _reported):
        for sent in (REQUEST, b"nonsense\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            writer.close()
            assert head.startswith(b"HTTP/1.")
            assert b"server:" not in head.lower()
