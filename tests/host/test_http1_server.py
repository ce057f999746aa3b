"""The HTTP/1.1 server without aiohttp: clients that take too long, and the same answers as of that with aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from kumadp.host.net.acceptor import Acceptor
from kumadp.host.net.connection_limit import ConnectionLimit
from kumadp.host.net.http1.messages import ServedRequest, WholeResponse
from kumadp.host.net.http1.server import MAX_HEAD, Http1Server, ServerOptions
from kumadp.host.net.serve import bind_tcp, paused, serve, serve_http1
from kumadp.host.net.time_limits import TimeLimits
from tests.support.event_loops import busy_in_a_read, on_both_loops
from tests.support.poll import poll_async
from tests.support.ports import free_port
from tests.support.raw_http import DEADLINE, RawResponse, responses, send_raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LONG = 60.0
PATIENT = TimeLimits(LONG, LONG, LONG, LONG)
REQUEST = b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
MAX_BODY = 1000
TEXT = ("Content-Type", "text/plain; charset=utf-8")


class Served:
    """A server of a test, and what it did."""

    def __init__(self, port: int, limit: ConnectionLimit) -> None:
        self.port = port
        self.limit = limit
        self.events: list[str] = []
        self.gate = asyncio.Event()

    async def answer(self, request: ServedRequest) -> WholeResponse:
        self.events.append(request.path)
        try:
            if request.path == "/slow":
                await self.gate.wait()
            if request.path == "/fail":
                raise RuntimeError
            body = await request.read(MAX_BODY) if request.path == "/read" else b""
        except asyncio.CancelledError:
            self.events.append("abandoned")
            raise
        large = bytes(64 << 20) if request.path == "/large" else b""
        return WholeResponse(200, body or large or request.path.encode(), (TEXT,))


@contextlib.asynccontextmanager
async def served(
    limits: TimeLimits = PATIENT, *, abandon: bool = False, limit: ConnectionLimit | None = None
) -> AsyncIterator[Served]:
    sock = bind_tcp("127.0.0.1", 0, "test")
    # Clients that send nothing are the server's too.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
    limit = limit or ConnectionLimit.for_socket("test", sock)
    result = Served(sock.getsockname()[1], limit)
    options = ServerOptions(limits, abandon=abandon, max_body=MAX_BODY, shutdown=0.1)
    server = Http1Server(
        result.answer,
        lambda _: result.events.append("connection"),
        lambda _: result.events.append("first request or end"),
        limit,
        options,
    )
    acceptor = Acceptor(sock, limit, server.connection)
    acceptor.open()
    try:
        async with asyncio.timeout(DEADLINE):
            yield result
    finally:
        acceptor.stop()
        await server.shut_down()
        sock.close()


@on_both_loops
async def test_a_client_that_sends_nothing_or_half_a_head_is_disconnected_after_a_while() -> None:
    async with served(TimeLimits(0.05, LONG, LONG)) as server:
        for sent in (b"", REQUEST[:10], b"\r\n"):
            assert await send_raw(server.port, [sent]) == b""
        assert "/ready" not in server.events


@on_both_loops
async def test_a_request_that_arrives_while_the_loop_is_busy_is_answered_after_its_time() -> None:
    async with served(TimeLimits(0.1, LONG, LONG)) as server:
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.setblocking(False)
            while "connection" not in server.events:
                await asyncio.sleep(0)
            await busy_in_a_read(0.3, lambda: client.send(LAST))
            assert (await loop.sock_recv(client, 4096)).endswith(b"/last")


@on_both_loops
async def test_a_second_head_must_end_too_and_silence_between_two_may_last_longer() -> None:
    async with served(TimeLimits(0.05, LONG, LONG)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n/ready")
        # Longer than a head may take.
        await asyncio.sleep(0.3)
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n/ready")
        writer.write(REQUEST[:10])
        assert await reader.read() == b""
        writer.close()
        assert server.events.count("/ready") == 2


@on_both_loops
async def test_a_connection_that_is_idle_for_too_long_ends() -> None:
    async with served(TimeLimits(LONG, LONG, 0.05)) as server:
        assert (await send_raw(server.port, [REQUEST])).endswith(b"/ready")


@on_both_loops
async def test_a_body_must_end_in_time_whether_it_is_read_or_not() -> None:
    async with served(TimeLimits(LONG, LONG, LONG, 0.05)) as server:
        for path in (b"/read", b"/slow"):
            half = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf" % path
            assert await send_raw(server.port, [half]) == b""
        # The response is sent at once where the handler does not read it; then its rest is received for a moment.
        half = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf"
        assert (await send_raw(server.port, [half])).endswith(b"/x")


@on_both_loops
async def test_a_client_that_does_not_read_is_disconnected() -> None:
    async with served(TimeLimits(LONG, 0.2, LONG)) as server:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            await loop.sock_sendall(client, REQUEST.replace(b"/ready", b"/large"))

            async def ended() -> bool:
                return server.events.count("first request or end") == 2

            await poll_async(ended, what="the end of the connection")
            got = 0
            with contextlib.suppress(ConnectionResetError):
                while part := await loop.sock_recv(client, 1 << 20):
                    got += len(part)
            assert got < 64 << 20


@on_both_loops
async def test_a_handler_is_abandoned_with_its_client_only_if_it_may_be() -> None:
    for abandon in (True, False):
        async with served(abandon=abandon) as server:
            _reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(REQUEST.replace(b"/ready", b"/slow"))
            while "/slow" not in server.events:
                await asyncio.sleep(0.01)
            writer.close()
            while server.events.count("first request or end") < 2:
                await asyncio.sleep(0.01)
            server.gate.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert ("abandoned" in server.events) is abandon


@on_both_loops
async def test_requests_that_come_ahead_are_answered_in_order_and_bounded() -> None:
    async with served() as server:
        data = await send_raw(server.port, [REQUEST * 1000, REQUEST * 1000 + LAST])
        assert [response.body for response in responses(data)] == [b"/ready"] * 2000 + [b"/last"]
        # While one is answered, no more than a buffer's worth is received of the others.
        _reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST.replace(b"/ready", b"/slow") + REQUEST * 500_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await writer.drain()
        assert server.events.count("/ready") == 2000
        writer.transport.abort()


@on_both_loops
async def test_a_request_byte_by_byte() -> None:
    async with served() as server:
        request = b"POST /read HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + LAST
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for at in range(len(request)):
            writer.write(request[at : at + 1])
            await asyncio.sleep(0)
        assert [response.body for response in responses(await reader.read())] == [b"abc", b"/last"]
        writer.close()


@on_both_loops
async def test_who_expects_100_gets_it_only_if_the_body_is_read() -> None:
    expecting = b"POST %s HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 3\r\n\r\n"
    async with served() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(expecting % b"/read")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await reader.read()).endswith(b"abc")
        writer.close()
        assert (await send_raw(server.port, [expecting % b"/x"])).endswith(b"/x")


BAD = {
    "no HTTP": b"nonsense\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nhost: x\n\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n" + bytes(200) + b"\r\n\r\n",
    "both lengths": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a large head": b"GET / HTTP/1.1\r\nx: " + b"a" * MAX_HEAD + b"\r\n\r\n",
    "an endless head": b"GET / HTTP/1.1\r\nx: " + b"a" * (MAX_HEAD * 2),
    "a bad body that is read": b"POST /read HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
}


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD)
async def test_bad_requests_are_answered_counted_and_end_the_connection(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as server:
        data = await send_raw(server.port, [sent + REQUEST])
        (response,) = responses(data)
        assert (response.status, response.body) == (400, b"400 Bad Request\n")
        assert server.limit.bad == 1
        assert len([line for line in caplog.messages if "bad request from 127.0.0.1" in line]) == 1
        assert "aaaa" not in caplog.text


async def test_a_bad_body_that_is_not_read_ends_the_connection_after_the_response() -> None:
    async with served() as server:
        sent = b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nx\r\n"
        (response,) = responses(await send_raw(server.port, [sent + REQUEST]))
        assert (response.status, response.body, server.limit.bad) == (200, b"/x", 1)
        # After the response.
        (response,) = responses(await send_raw(server.port, [sent[:-3], b"x\r\n", REQUEST]))
        assert (response.status, response.body, server.limit.bad) == (200, b"/x", 2)


async def test_a_handler_that_fails_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as server:
        (response,) = responses(await send_raw(server.port, [REQUEST.replace(b"/ready", b"/fail")]))
        assert (response.status, response.body) == (500, b"500 Internal Server Error\n")
        assert "RuntimeError" in caplog.text


@on_both_loops
async def test_who_owes_something_may_be_displaced() -> None:
    limit = ConnectionLimit("test", 1)
    async with served(limit=limit) as server:
        for owed in (b"", REQUEST[:5], REQUEST, b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nx"):
            count = server.limit.slots.displaced
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(owed)
            await asyncio.sleep(0.05)
            assert (await send_raw(server.port, [LAST])).endswith(b"/last")
            assert server.limit.slots.displaced > count
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            writer.close()
        # Not one whose response is being made.
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST.replace(b"/ready", b"/slow"))
        while "/slow" not in server.events:
            await asyncio.sleep(0.01)
        assert not limit.slots.displace_any()
        server.gate.set()
        assert (await reader.readuntil(b"/slow")).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


@on_both_loops
async def test_a_shutdown_answers_what_is_under_way_and_cancels_what_takes_too_long() -> None:
    for in_time in (True, False):
        sock = bind_tcp("127.0.0.1", 0, "test")
        limit = ConnectionLimit.for_socket("test", sock)
        result = Served(sock.getsockname()[1], limit)
        options = ServerOptions(PATIENT, shutdown=LONG if in_time else 0.05)
        server = Http1Server(result.answer, lambda _: None, lambda _: None, limit, options)
        acceptor = Acceptor(sock, limit, server.connection)
        acceptor.open()
        async with asyncio.timeout(DEADLINE):
            idle = asyncio.create_task(send_raw(result.port, [REQUEST]))
            busy = asyncio.create_task(send_raw(result.port, [REQUEST.replace(b"/ready", b"/slow")]))
            while "/slow" not in result.events or "/ready" not in result.events:
                await asyncio.sleep(0.01)
            await acceptor.close()
            closing = asyncio.create_task(server.shut_down())
            assert (await idle).endswith(b"/ready")
            if in_time:
                result.gate.set()
                (response,) = responses(await busy)
                assert ("connection", "close") in response.fields
            else:
                assert await busy in {b"", b"reset"}
            await closing
        sock.close()


async def test_all_who_come_in_a_pause_are_answered() -> None:
    port, up = free_port(), asyncio.Event()

    async def answer(_request: ServedRequest) -> WholeResponse:
        return WholeResponse(200, b"READY")

    sock = bind_tcp("127.0.0.1", port, "test")
    serving = asyncio.create_task(serve_http1(answer, sock, up.set, name="test", options=ServerOptions()))
    try:
        async with asyncio.timeout(60):
            await up.wait()
            for _ in range(2):
                async with paused():
                    clients = [asyncio.create_task(send_raw(port, [LAST])) for _ in range(100)]
                    await asyncio.sleep(0.05)
                assert all(data.endswith(b"READY") for data in await asyncio.gather(*clients))
    finally:
        serving.cancel()
        await asyncio.wait({serving})


CHUNKED = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
# What both servers send to the same bytes; the handler answers 200 with the path, and reads the body of `/read`.
SAME = {
    "one": [LAST],
    "kept": [REQUEST, LAST],
    "ahead": [REQUEST * 5 + LAST],
    "old": [b"GET /a HTTP/1.0\r\n\r\n"],
    "old and kept": [b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", b"GET /b HTTP/1.0\r\n\r\n"],
    "no host": [b"GET /a HTTP/1.1\r\nconnection: close\r\n\r\n"],
    "query": [LAST.replace(b"/last", b"/last?a=b")],
    "fragment": [LAST.replace(b"/last", b"/last#b")],
    "absolute": [LAST.replace(b"/last", b"http://x/a?b")],
    "star": [LAST.replace(b"GET /last", b"OPTIONS *")],
    "escapes": [LAST.replace(b"/last", b"/%41%2f%zz")],
    "dots": [LAST.replace(b"/last", b"/a/../b//c/.")],
    "post": [b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc" + LAST],
    "post in pieces": [b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\na", b"bc" + LAST],
    "chunks": [
        b"POST /read HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\n\r\n" + LAST
    ],
    "trailers": [
        b"POST /read HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-a: 1\r\n\r\n" + LAST
    ],
    "not read": [b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc" + LAST],
    "not read, in pieces": [b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\na", b"bc" + LAST],
    "head": [LAST.replace(b"GET", b"HEAD")],
    "delete": [LAST.replace(b"GET", b"DELETE")],
    "empty line first": [b"\r\n" + LAST],
    "upgrade": [b"GET /a HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: close, upgrade\r\n\r\n"],
    "folded": [b"GET /a HTTP/1.1\r\nhost: x\r\nx-a: 1\r\n b\r\n\r\n"],
    "both lengths": [
        b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ],
    "two lengths": [b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc"],
    "signed": [b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: +3\r\n\r\nabc"],
    "space in a name": [b"GET /a HTTP/1.1\r\nhost: x\r\nx a: 1\r\n\r\n"],
    "space before a colon": [b"GET /a HTTP/1.1\r\nhost : x\r\n\r\n"],
    "NUL": [b"GET /a HTTP/1.1\r\nhost: x\r\nx: \x00\r\n\r\n"],
    "nonsense": [b"nonsense\r\n\r\n"],
    "version": [b"GET /a HTTP/3.7\r\nhost: x\r\n\r\n"],
    "other coding": [b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n"],
    "bad chunk, read": [b"POST /read HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n"],
    "two hosts": [LAST.replace(b"host", b"host: y\r\nhost")],
    "the same length twice": [b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc"],
    "control character": [LAST.replace(b"\r\nhost", b"\r\nx-a: \x01\r\nhost")],
    "escape sequence": [LAST.replace(b"\r\nhost", b"\r\nx-a: \x1b[2J\r\nhost")],
    "one bare LF": [LAST.replace(b"\r\nhost", b"\r\nx-a: 1\nhost")],
    "only bare LF": [LAST.replace(b"\r", b"")],
    "beyond ASCII in a target": [LAST.replace(b"/last", b"/\xc3\xa4")],
    "beyond ASCII in a field": [LAST.replace(b"\r\nhost", b"\r\nx-a: \xff\r\nhost")],
    "no slash": [LAST.replace(b"/last", b"last")],
    "many fields": [LAST.replace(b"\r\nhost", b"\r\nx: 1" * 120 + b"\r\nhost")],
    "too many fields": [LAST.replace(b"\r\nhost", b"\r\nx: 1" * 200 + b"\r\nhost")],
    "other expectation": [b"POST /read HTTP/1.1\r\nhost: x\r\nexpect: y\r\ncontent-length: 3\r\n\r\nabc" + LAST],
    "bare LF in chunks": [CHUNKED.replace(b"/a", b"/read").replace(b"0\r\n\r\n", b"1\na\n0\n\n")],
    "no value of Host": [LAST.replace(b"host: x", b"host:")],
    "websocket": [REQUEST.replace(b"\r\nhost", b"\r\nupgrade: websocket\r\nconnection: upgrade\r\nhost") + LAST],
    "large head": [b"GET /a HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 40_000 + b"\r\n\r\n"],
}
# Where ours answers otherwise: the statuses of aiohttp's server and of ours.
DIFFERENT = {
    # Stricter: what the RFC allows to reject, and other programs may read differently.
    "two codings": ([CHUNKED.replace(b"chunked", b"gzip, chunked") + LAST], [200, 200], [400]),
    "chunks in HTTP/1.0": ([CHUNKED.replace(b"1.1", b"1.0")], [200], [400]),
    "two spaces": ([LAST.replace(b"GET", b"GET ")], [200], [400]),
    "HTTP/0.9": ([b"GET /a\r\n\r\n"], [200], [400]),
    "several empty lines first": ([b"\r\n\r\n\r\n" + LAST], [200], [400]),
    "CONNECT": ([b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"], [200], [400]),
    # Any token is a method (RFC 9110, 9.1), and a long field is no attack.
    "unknown method": ([LAST.replace(b"GET", b"FOO")], [400], [200]),
    "a field of 9000 bytes": ([LAST.replace(b"\r\nhost", b"\r\nx: " + b"a" * 9000 + b"\r\nhost")], [400], [200]),
    # The request ahead of a malformed one is answered.
    "garbage behind": ([REQUEST + b"garbage\r\n\r\n"], [400], [200, 400]),
}


def expected(theirs: list[RawResponse]) -> list[RawResponse]:
    """Ours announces that it closes the connection after a bad request."""
    closing = ("connection", "close")
    return [replace(one, fields=tuple(sorted({closing, *one.fields}))) if one.status == 400 else one for one in theirs]


@contextlib.asynccontextmanager
async def both() -> AsyncIterator[tuple[int, int]]:
    """The two servers' ports: aiohttp's and ours."""
    ports, up = (free_port(), free_port()), [asyncio.Event(), asyncio.Event()]

    async def theirs(request: web.BaseRequest) -> web.Response:
        path = request.rel_url.raw_path
        body = await request.read() if path == "/read" else path.encode()
        return web.Response(body=body, headers=[TEXT])

    async def ours(request: ServedRequest) -> WholeResponse:
        body = await request.read(MAX_BODY) if request.path == "/read" else request.path.encode()
        return WholeResponse(200, body, (TEXT,))

    options = ServerOptions(max_body=MAX_BODY)
    tasks = [
        asyncio.create_task(serve(theirs, bind_tcp("127.0.0.1", ports[0], "theirs"), up[0].set, name="theirs")),
        asyncio.create_task(
            serve_http1(ours, bind_tcp("127.0.0.1", ports[1], "ours"), up[1].set, name="ours", options=options)
        ),
    ]
    try:
        for event in up:
            await event.wait()
        yield ports
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize("pieces", SAME.values(), ids=SAME)
async def test_the_same_answers_as_with_aiohttp(pieces: list[bytes]) -> None:
    async with both() as ports:
        to_head = pieces[0].startswith(b"HEAD")
        theirs, ours = [responses(await send_raw(port, pieces), to_head=to_head) for port in ports]
        assert ours == expected(theirs)
        assert ours


@pytest.mark.parametrize(("pieces", "theirs", "ours"), DIFFERENT.values(), ids=DIFFERENT)
async def test_where_it_differs_from_aiohttp(pieces: list[bytes], theirs: list[int], ours: list[int]) -> None:
    async with both() as ports:
        actual = [[response.status for response in responses(await send_raw(port, pieces))] for port in ports]
        assert actual == [theirs, ours]
