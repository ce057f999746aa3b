"""The HTTP client for one socket: its requests, the responses it accepts, and when it opens another connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kumadp.dynconf.socket_client import MAX_BODY, InvalidResponse, SocketClient, SocketResponse
from tests.support.event_loops import on_both_loops
from tests.support.unix_http_server import response, unix_http_server

if TYPE_CHECKING:
    from pathlib import Path

ETAG = "ce7e214803a5e77c604834964da983d5464238f7247c8d58f5d1acfbb4a00ee1"


@on_both_loops
async def test_one_connection_for_many_requests(short: Path) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.put("/dns", b"names", ETAG)
        assert await client.get("/dns") == SocketResponse(200, ETAG, b"names")
        assert await client.get("/dns", ETAG) == SocketResponse(304, "", b"")
        assert await client.get("/otel") == SocketResponse(404, "", b"")
        assert server.requests == [("/dns", ""), ("/dns", ETAG), ("/otel", "")]
        assert server.connections == 1
        client.close()


@pytest.mark.parametrize("etag", [ETAG, '"quoted"', 'W/"weak"', "sp ace", "\xe9"])
async def test_an_etag_is_sent_back_unchanged(short: Path, etag: str) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.put("/dns", b"names", etag)
        assert (await client.get("/dns")).etag == etag
        assert (await client.get("/dns", etag)).status == 304
        assert server.requests[-1] == ("/dns", etag)
        client.close()


@on_both_loops
async def test_a_closed_connection_is_replaced(short: Path) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.put("/dns", b"names")
        await client.get("/dns")
        await server.close()
        await server.open()
        assert (await client.get("/dns")).body == b"names"
        assert server.connections == 2
        client.close()


async def test_a_response_of_a_draining_listener_is_ignored(short: Path) -> None:
    """An Envoy that drains a listener responds with the old body and closes the connection."""
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.put("/dns", b"old")
        await client.get("/dns")
        server.responses["/dns"] = response(200, b"old", "Connection: close")
        assert (await client.get("/dns")).body == b"old"
        assert server.connections == 2
        assert server.count("/dns") == 3
        server.put("/dns", b"new")
        assert (await client.get("/dns")).body == b"new"
        client.close()


async def test_nobody_listens(short: Path) -> None:
    client = SocketClient(short)
    with pytest.raises(FileNotFoundError):
        await client.get("/dns")
    async with unix_http_server(short) as server:
        server.put("/dns", b"names")
        await client.get("/dns")
    with pytest.raises(ConnectionRefusedError):
        await client.get("/dns")


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nmany\r\n5;x=y\r\n more\r\n0\r\n\r\n",
            b"many more",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\ntrailer: x\r\n\r\n", b""),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
    ],
)
@on_both_loops
async def test_chunked_bodies_and_bodies_until_the_end(short: Path, raw: bytes, body: bytes) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.responses["/dns"] = raw
        for _ in range(2):
            assert (await client.get("/dns")).body == body
        client.close()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "no number"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "negative"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (MAX_BODY + 1), "larger"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % (MAX_BODY + 1), "larger"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 100_000 + b"\r\n", "too long"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(MAX_BODY + 1), "larger"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", "too long"),
        (b"HTTP/1.1 200 OK\r\ncontent-length", "too early"),
    ],
)
async def test_invalid_responses(short: Path, raw: bytes, message: str) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.responses["/dns"] = raw
        with pytest.raises(InvalidResponse, match=message):
            await client.get("/dns")
        server.put("/dns", b"names")
        assert (await client.get("/dns")).body == b"names"
        client.close()


@on_both_loops
async def test_the_largest_body(short: Path) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        body = b"x" * MAX_BODY
        server.put("/dns", body)
        assert (await client.get("/dns")).body == body
        client.close()


async def test_a_cancelled_request_closes_only_its_connection(short: Path) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.put("/dns", b"names")
        server.put("/otel", b"collectors")
        server.held["/dns"] = asyncio.Event()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.get("/dns")
        assert (await client.get("/otel")).body == b"collectors"
        assert server.connections == 2
        client.close()
