"""One request on a new connection: what is sent, what counts as a response, and the same results as with aiohttp."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import psutil
import pytest
from aiohttp import ClientError, ClientSession, DummyCookieJar, TCPConnector

from kumadp.host.net.application_socket import application_socket
from kumadp.host.net.host_lookup import connect
from kumadp.host.net.http1.client import MAX_HEAD, UpstreamResponse, encode_request, exchange
from kumadp.host.net.http1.heads import MalformedMessage
from tests.support.event_loops import on_both_loops
from tests.support.poll import poll_async
from tests.support.ports import free_port
from tests.support.raw_http import DEADLINE, scripted_application

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_BODY = 1000
OK = b"HTTP/1.1 200 OK\r\n"
LARGE = 5 << 20


async def get(port: int, *, method: str = "GET", max_body: int = MAX_BODY) -> UpstreamResponse:
    request = encode_request(method, "/a?b", [("Host", "x"), ("X-A", "\xe4")])
    async with asyncio.timeout(DEADLINE):
        sock = await connect(application_socket(socket.AF_INET, sourced=False), "127.0.0.1", port)
        return await exchange(sock, request, max_body=max_body, to_head=method == "HEAD")


async def returned(descriptors: int) -> None:
    """Wait until this process has at most a few descriptors more than before ten exchanges or more."""

    async def few() -> bool:
        return psutil.Process().num_fds() < descriptors + 5

    await poll_async(few, what="closed sockets")


def test_requests() -> None:
    assert encode_request("GET", "/", [("Host", "x")]) == b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    posted = encode_request("POST", "/a", [("X", "\xff")], b"abc")
    assert posted == b"POST /a HTTP/1.1\r\nX: \xff\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
    assert b"Content-Length: 0\r\n" in encode_request("POST", "/a", [], b"")


@on_both_loops
async def test_a_response_ends_the_connection_and_the_socket() -> None:
    async with scripted_application(OK + b"content-length: 2\r\nX-A: \xff\r\n\r\nok") as (port, heads):
        descriptors = psutil.Process().num_fds()
        for _ in range(20):
            response = await get(port)
            assert (response.head.status, response.head.reason, response.body) == (200, "OK", b"ok")
            assert response.head.fields.get("x-a") == "\xff"
        assert heads[-1] == b"GET /a?b HTTP/1.1\r\nHost: x\r\nX-A: \xe4\r\nConnection: close\r\n\r\n"
        await returned(descriptors)


@on_both_loops
async def test_a_body_is_read_up_to_a_limit() -> None:
    for fields in (b"content-length: %d\r\n\r\n" % LARGE, b"\r\n", b"transfer-encoding: chunked\r\n\r\n%x\r\n" % LARGE):
        async with scripted_application(OK + fields, bytes(LARGE)) as (port, _):
            response = await get(port)
            assert (response.head.status, response.body) == (200, bytes(MAX_BODY))
            assert (await get(port, max_body=0)).body == b""


@on_both_loops
async def test_interim_responses_are_skipped_and_bounded() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    async with scripted_application(interim * 3, OK + b"content-length: 2\r\n\r\nok") as (port, _):
        assert (await get(port)).body == b"ok"
    async with scripted_application(*[interim * 1000] * 100) as (port, _):
        with pytest.raises(MalformedMessage, match="more than"):
            await get(port)
    async with scripted_application(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"x") as (port, _):
        with pytest.raises(MalformedMessage, match="switch"):
            await get(port)


@on_both_loops
async def test_heads_are_bounded() -> None:
    large = OK + b"x: " + b"a" * (MAX_HEAD - 100) + b"\r\n\r\n"
    async with scripted_application(large) as (port, _):
        assert (await get(port)).head.status == 200
    async with scripted_application(OK + b"x: " + b"a" * MAX_HEAD) as (port, _):
        with pytest.raises(MalformedMessage):
            await get(port)


@on_both_loops
async def test_failures() -> None:
    with pytest.raises(ConnectionRefusedError):
        await get(free_port())
    async with scripted_application(OK + b"content-length: 9\r\n\r\nhalf") as (port, _):
        with pytest.raises(MalformedMessage, match="not complete"):
            await get(port)
    async with scripted_application(reset=True) as (port, _):
        with pytest.raises((ConnectionResetError, MalformedMessage)):
            await get(port)


@on_both_loops
async def test_a_cancelled_exchange_closes_its_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        descriptors = psutil.Process().num_fds()
        for _ in range(10):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await get(silent.getsockname()[1])
        await returned(descriptors)


CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
# Pieces that an application sends before it closes the connection.
SAME = {
    "length": [OK + b"content-length: 2\r\n\r\nok"],
    "byte by byte": [bytes([byte]) for byte in OK + b"content-length: 2\r\n\r\nok"],
    "until the end": [OK + b"\r\n", b"o", b"k"],
    "HTTP/1.0": [b"HTTP/1.0 200 OK\r\n\r\nok"],
    "chunks": [CHUNKED + b"1\r\no\r\n", b"1;a=b\r\nk\r\n0\r\nX-T: 1\r\n\r\n"],
    "no body": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "not modified": [b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"],
    "no reason": [b"HTTP/1.1 404 \r\ncontent-length: 0\r\n\r\n"],
    "unusual status": [b"HTTP/1.1 599 Odd\r\ncontent-length: 0\r\n\r\n"],
    "interim": [b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok"],
    "fields twice": [OK + b"set-cookie: a\r\nset-cookie: b\r\ncontent-length: 0\r\n\r\n"],
    "nothing": [b""],
    "half a head": [OK],
    "half a body": [OK + b"content-length: 9\r\n\r\nhalf"],
    "half a chunk": [CHUNKED + b"9\r\nhalf"],
    "no last chunk": [CHUNKED + b"2\r\nok\r\n"],
    "bad chunk": [CHUNKED + b"xyz\r\n"],
    "no HTTP": [b"220 this is no HTTP\r\n\r\n"],
    "two lengths": [OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok"],
    "no number": [OK + b"content-length: x\r\n\r\nok"],
    "no field": [OK + b"nothing\r\n\r\n"],
}
# What ours makes of it where aiohttp fails, or the other way round; Go's net/http, and with it kubelet, is the reason.
GOOD, FAILURE = "good", "failure"
DIFFERENT = {
    "bare LF": ([b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok"], GOOD),
    "both lengths": ([OK + b"content-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"], GOOD),
    "the same length twice": ([OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\nok"], GOOD),
    "more than its length": ([OK + b"content-length: 2\r\n\r\nokmore"], GOOD),
    "other coding": ([OK + b"transfer-encoding: gzip\r\n\r\nok"], FAILURE),
}


def lower(fields: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """aiohttp's parser changes the case of common names."""
    return [(name.lower(), value) for name, value in fields]


async def ours(port: int) -> tuple[object, ...]:
    try:
        response = await get(port)
    except (OSError, MalformedMessage):
        return (FAILURE,)
    return response.head.status, response.head.reason, lower(response.head.fields.items()), response.body


async def theirs(port: int) -> tuple[object, ...]:
    connector, jar = TCPConnector(force_close=True), DummyCookieJar()
    async with ClientSession(connector=connector, cookie_jar=jar, auto_decompress=False) as session:
        try:
            async with session.get(f"http://127.0.0.1:{port}/a", allow_redirects=False) as response:
                body = await response.content.read()
                return response.status, response.reason, lower(response.headers.items()), body
        except (OSError, ClientError):
            return (FAILURE,)


@pytest.mark.parametrize("pieces", SAME.values(), ids=SAME)
async def test_the_same_results_as_with_aiohttp(pieces: list[bytes]) -> None:
    async with scripted_application(*pieces) as (port, _), asyncio.timeout(DEADLINE):
        assert await ours(port) == await theirs(port)


@pytest.mark.parametrize(("pieces", "result"), DIFFERENT.values(), ids=DIFFERENT)
async def test_results_as_with_go(pieces: list[bytes], result: str) -> None:
    async with scripted_application(*pieces) as (port, _), asyncio.timeout(DEADLINE):
        actual = await ours(port)
        assert (actual[0], actual[-1]) == ((200, b"ok") if result == GOOD else (FAILURE, FAILURE))
        assert actual != await theirs(port) or result == GOOD
