"""The small client: what it asks, what it takes for an answer, and when it opens another connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kumadp.dynconf.http import LARGEST_BODY, Answer, BadAnswer, SocketClient
from tests.support.event_loops import on_both_loops
from tests.support.unix_http_server import response, unix_http_server

if TYPE_CHECKING:
    from pathlib import Path

ETAG = "ce7e214803a5e77c604834964da983d5464238f7247c8d58f5d1acfbb4a00ee1"


@on_both_loops
async def test_one_connection_for_many_questions(short: Path) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.put("/dns", b"names", ETAG)
        assert await client.get("/dns") == Answer(200, ETAG, b"names")
        assert await client.get("/dns", ETAG) == Answer(304, "", b"")
        assert await client.get("/otel") == Answer(404, "", b"")
        assert server.requests == [("/dns", ""), ("/dns", ETAG), ("/otel", "")]
        assert server.connections == 1
        client.close()


@pytest.mark.parametrize("etag", [ETAG, '"quoted"', 'W/"weak"', "sp ace", "\xe9"])
async def test_an_etag_goes_back_as_it_came(short: Path, etag: str) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.put("/dns", b"names", etag)
        assert (await client.get("/dns")).etag == etag
        assert (await client.get("/dns", etag)).status == 304
        assert server.requests[-1] == ("/dns", etag)
        client.close()


@on_both_loops
async def test_one_that_was_kept_may_have_ended(short: Path) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.put("/dns", b"names")
        await client.get("/dns")
        await server.close()
        await server.open()
        assert (await client.get("/dns")).body == b"names"
        assert server.connections == 2
        client.close()


async def test_who_is_about_to_go_is_not_believed(short: Path) -> None:
    """An Envoy that drains a listener answers with what was, and that the connection ends."""
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.put("/dns", b"old")
        await client.get("/dns")
        server.responses["/dns"] = response(200, b"old", "HttpConnection: close")
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
async def test_other_ways_to_frame_a_body(short: Path, raw: bytes, body: bytes) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.responses["/dns"] = raw
        for _ in range(2):
            assert (await client.get("/dns")).body == body
        client.close()


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "no number"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "negative"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (LARGEST_BODY + 1), "larger"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % (LARGEST_BODY + 1), "larger"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 100_000 + b"\r\n", "too long"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(LARGEST_BODY + 1), "larger"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", "too long"),
        (b"HTTP/1.1 200 OK\r\ncontent-length", "too early"),
    ],
)
async def test_what_is_no_answer(short: Path, raw: bytes, why: str) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        server.responses["/dns"] = raw
        with pytest.raises(BadAnswer, match=why):
            await client.get("/dns")
        server.put("/dns", b"names")
        assert (await client.get("/dns")).body == b"names"
        client.close()


@on_both_loops
async def test_the_largest_body(short: Path) -> None:
    async with unix_http_server(short) as server:
        client = SocketClient(short)
        body = b"x" * LARGEST_BODY
        server.put("/dns", body)
        assert (await client.get("/dns")).body == body
        client.close()


async def test_a_question_that_is_given_up_costs_the_connection_only(short: Path) -> None:
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
