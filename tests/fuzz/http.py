"""HTTP/1.1 of our own: probes, answers of the application, of Envoy's admin, and over Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from hypothesis import strategies as st

from kumadp.dynconf import socket_client
from kumadp.host.net import unix_http
from kumadp.host.net.http1.bodies import BodyDecoder
from kumadp.host.net.http1.heads import MalformedMessage, parse_request_head, parse_response_head
from kumadp.host.net.http1.messages import split_target
from kumadp.probes.headers import forwarded, is_text
from kumadp.probes.probe_request import CleanPathRedirect, parse_request, parse_scheme, parse_timeout
from tests.fuzz.target import Target

_WORDS = (
    b"\r\n", b"\n", b"\r", b"HTTP/1.1", b"HTTP/1.0", b"Host: a", b"Content-Length: 5", b"Transfer-Encoding: chunked",
    b"Connection: close", b": ", b"\t", b"\r\n ", b"%2e%2e", b"/../", b"//", b"/tcp/80", b"/grpc/80/a", b"?a=b", b"%00",
    b"X-Kuma-Probes-Timeout: 3", b"0\r\n\r\n", b"5;x\r\n", b"\x7f", b"http://",
)  # fmt: skip


def _request(data: bytes) -> None:
    head, separator, rest = data.partition(b"\r\n\r\n")
    request = parse_request_head(head)
    path, query = split_target(request.target)
    probe = parse_request(path, query)
    if isinstance(probe, CleanPathRedirect):
        again = parse_request(*split_target(probe.location))
        assert not isinstance(again, CleanPathRedirect), (path, probe, again)
        assert "\r" not in probe.location
        assert "\n" not in probe.location
    elif probe is not None:
        assert 0 <= probe.port <= 65535
        assert not set("\r\n ") & set(probe.path + probe.query), probe
    parse_timeout(request.fields)
    parse_scheme(request.fields)
    for name, value in forwarded(request.fields):
        assert "\n" not in name + value
        assert "\r" not in name + value
    if separator:
        body = BodyDecoder(request.length, chunked=request.length is None, keep=1000)
        _feed(body, rest)


def _feed(body: BodyDecoder, data: bytes) -> None:
    middle = len(data) // 3
    for part in (data[:middle], data[middle:]):
        if not body.complete:
            body.feed(part)
    assert len(body.content) <= 1000


def _response(data: bytes) -> None:
    head, _, rest = data.partition(b"\r\n\r\n")
    response = parse_response_head(head, has_body=True)
    assert 100 <= response.status <= 999
    [is_text(value) for _, value in response.fields.items()]
    _feed(BodyDecoder(response.length, chunked=response.chunked, keep=1000), rest)


def _requests() -> list[bytes]:
    return [
        b"GET /8080/healthz?a=b HTTP/1.1\r\nHost: 10.0.0.1:9001\r\nUser-Agent: kube-probe/1.31\r\n"
        b"X-Kuma-Probes-Timeout: 3\r\nX-Kuma-Probes-Scheme: HTTP\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        b"POST /tcp/6379 HTTP/1.1\r\nhost:a\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\n",
        b"GET http://a/grpc/9090/svc HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
    ]


def _responses() -> list[bytes]:
    return [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok",
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nEtag: "a"\r\n\r\n2\r\nok\r\n0\r\n\r\n',
        b"HTTP/1.0 503 x\nA: b\n c\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ]


def _heads(first: list[str]) -> st.SearchStrategy[bytes]:
    field = st.tuples(
        st.sampled_from(
            ["Host", "Content-Length", "Transfer-Encoding", "Connection", "A-b", " x", "", "X-Kuma-Probes-Timeout"]
        ),
        st.sampled_from([":", ": ", " : ", ""]),
        st.sampled_from(["a", "5", "chunked", "close, a", "5, 5", "\t", "é", "\x00", "keep-alive", "+5", "0x5"]),
    ).map("".join)
    end = st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r\n "])
    body = st.sampled_from(["", "abc", "5\r\nhello\r\n0\r\n\r\n", "fffffffffffffff\r\n", "0\r\n" + "a: b\r\n" * 70])
    return st.tuples(
        st.sampled_from(first), st.lists(st.tuples(end, field).map("".join), max_size=8).map("".join), body
    ).map(lambda parts: (parts[0] + parts[1] + "\r\n\r\n" + parts[2]).encode("latin-1"))


class _Socket:
    """A socket whose peer has sent everything."""

    def __init__(self, data: bytes) -> None:
        self._parts = [data[: len(data) // 2], data[len(data) // 2 :], b""]

    def settimeout(self, seconds: float) -> None:
        """Ignore the timeout: everything is there."""

    def sendall(self, data: bytes) -> None:
        """Ignore the request."""

    def recv(self, _size: int) -> bytes:
        """Return the next part."""
        return next((self._parts.pop(0) for _ in range(len(self._parts)) if self._parts[0]), b"")


def _over_unix(data: bytes) -> None:
    sock: Any = _Socket(data)
    unix_http.exchange(sock, "GET", "/status", time.monotonic() + 60)


_loops: list[asyncio.AbstractEventLoop] = []


def _dynamic(data: bytes) -> None:
    """The client of dynamic configuration, with a connection that is at its end."""
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    reader = asyncio.StreamReader(loop=_loops[0])
    reader.feed_data(data)
    reader.feed_eof()
    work = _read_dynamic(reader)
    with contextlib.suppress(StopIteration):
        while True:
            work.send(None)


async def _read_dynamic(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    _, headers = socket_client._parse(head[:-4])
    await socket_client._body(reader, headers)


TARGETS = (
    Target(
        "probe-request", _request, _requests, (MalformedMessage,), _WORDS,
        lambda: _heads(["GET /8080/a HTTP/1.1", "POST /tcp/1 HTTP/1.0", "GET /a//../b HTTP/1.1", "GET * HTTP/1.1",
        "G"]),
        lines=60, lines_base=6000, memory=300,
    ),
    Target(
        "probe-response", _response, _responses, (MalformedMessage,), _WORDS,
        lambda: _heads(["HTTP/1.1 200 OK", "HTTP/1.0 204", "HTTP/1.1  503  a", "HTTP/2 200", "HTTP/1.1 099 x"]),
        lines=60, memory=300,
    ),
    Target("unix-socket-response", _over_unix, _responses, (OSError,), _WORDS, lines=60, memory=300),
    Target(
        "dynconf-response", _dynamic, _responses,
        (socket_client.InvalidResponse, asyncio.IncompleteReadError, asyncio.LimitOverrunError), _WORDS,
        lines=60, lines_base=5000, memory=300,
    ),
)  # fmt: skip
