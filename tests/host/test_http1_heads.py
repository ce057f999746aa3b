"""Heads of HTTP/1.1 messages: what is accepted, what is not, and how much work it is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from kumadp.host.net.http1.heads import (
    MAX_REQUEST_FIELDS,
    MAX_REQUEST_LINE,
    MAX_RESPONSE_FIELDS,
    MalformedMessage,
    RequestHead,
    parse_request_head,
    parse_response_head,
)
from kumadp.host.net.http1.messages import split_target

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

GET = b"GET / HTTP/1.1\r\nHost: x"


def parsed(*lines: bytes) -> RequestHead:
    return parse_request_head(b"\r\n".join((GET, *lines)))


def test_a_request() -> None:
    head = parse_request_head(
        b"POST /a%20b?x=1 HTTP/1.1\r\nHost: web:80\r\nX-A: \t 1 \t\r\nx-a:2\r\nX-Empty:\r\nX-Raw: \xc3\xa4\xff"
    )
    assert (head.method, head.target, head.minor, head.length, head.keep_alive) == ("POST", "/a%20b?x=1", 1, 0, True)
    assert head.fields.values["x-a"] == ["1", "2"]
    assert (head.fields.get("X-EMPTY", "-"), head.fields.get("X-Missing", "-")) == ("", "-")
    assert head.fields.get("x-raw").encode("latin-1") == b"\xc3\xa4\xff"
    assert [name for name, _ in head.fields.items()] == ["Host", "X-A", "x-a", "X-Empty", "X-Raw"]


@pytest.mark.parametrize(
    ("minor", "connection", "keep"),
    [
        (1, b"", True),
        (1, b"Connection: close", False),
        (1, b"Connection: X-A, Close", False),
        (1, b"Connection: X-A\r\nConnection: close", False),
        (1, b"Connection: closed", True),
        (0, b"", False),
        (0, b"Connection: Keep-Alive", True),
        (0, b"Connection: keep-alive, close", False),
    ],
)
def test_whether_the_connection_is_kept(minor: int, connection: bytes, keep: bool) -> None:
    head = b"GET / HTTP/1.%d\r\nHost: x\r\n" % minor + (connection or b"X: 1")
    assert parse_request_head(head).keep_alive is keep


@pytest.mark.parametrize(
    ("line", "length"),
    [(b"Content-Length: 12", 12), (b"Transfer-Encoding: Chunked", None), (b"content-length:0", 0), (b"X: 1", 0)],
)
def test_the_length_of_a_request_s_body(line: bytes, length: int | None) -> None:
    assert parsed(line).length == length


SMUGGLED = {
    "both lengths": b"Content-Length: 1\r\nTransfer-Encoding: chunked",
    "two lengths": b"Content-Length: 1\r\nContent-Length: 2",
    "the same length twice": b"Content-Length: 1\r\nContent-Length: 1",
    "a list of lengths": b"Content-Length: 1, 1",
    "signed": b"Content-Length: +1",
    "negative": b"Content-Length: -1",
    "hexadecimal": b"Content-Length: 0x1",
    "underscore": b"Content-Length: 1_0",
    "empty length": b"Content-Length:",
    "other digits": "Content-Length: ١".encode(),
    "huge": b"Content-Length: " + b"9" * 19,
    "two codings": b"Transfer-Encoding: gzip, chunked",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "identity": b"Transfer-Encoding: identity",
    "hidden coding": b"Transfer-Encoding: \x0bchunked",
    "space before the colon": b"Content-Length : 1",
    "continued": b"X-A: 1\r\n Content-Length: 2",
    "continued by a tab": b"X-A: 1\r\n\tb",
    "no colon": b"Content-Length",
    "no name": b": 1",
    "name with a space": b"X A: 1",
    "name beyond ASCII": "Ä: 1".encode(),
    "bare LF": b"X-A: 1\nContent-Length: 2",
    "bare CR": b"X-A: 1\rContent-Length: 2",
    "NUL": b"X-A: 1\x00",
    "escape": b"X-A: \x1b[2J",
    "DEL": b"X-A: \x7f",
    "two hosts": b"Host: y",
    "the same host twice": b"host: x",
    "many elements of Connection": b"Connection: x" + b",x" * 64,
    "empty line": b"\r\nX-A: 1",
}


@pytest.mark.parametrize("lines", SMUGGLED.values(), ids=SMUGGLED)
def test_ambiguous_requests_are_rejected(lines: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parsed(lines)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET / HTTP/1.2",
        b"GET / HTTP/2.0",
        b"GET / http/1.1",
        b"GET / HTTP/1.1\n",
        b"G(T / HTTP/1.1",
        b"G" * 33 + b" / HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b"GET /\xc3\xa4 HTTP/1.1",
        b"GET a HTTP/1.1",
        b"CONNECT web:80 HTTP/1.1",
        b"GET /" + b"a" * MAX_REQUEST_LINE + b" HTTP/1.1",
    ],
)
def test_request_lines_that_are_none(line: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_request_head(line + b"\r\nHost: x")


def test_a_host_is_required_since_http_1_1() -> None:
    assert parse_request_head(b"GET / HTTP/1.0").minor == 0
    for head in (b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nX-Host: x"):
        with pytest.raises(MalformedMessage, match="Host"):
            parse_request_head(head)


def test_too_many_fields() -> None:
    few = [b"X-A: 1"] * (MAX_REQUEST_FIELDS - 1)
    assert len(parsed(*few).fields.items()) == MAX_REQUEST_FIELDS
    with pytest.raises(MalformedMessage, match="more than"):
        parsed(*few, b"X-A: 1")
    with pytest.raises(MalformedMessage, match="more than"):
        parse_response_head(b"HTTP/1.1 200 OK" + b"\r\nX-A: 1" * (MAX_RESPONSE_FIELDS + 1), has_body=True)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a?b?c", "/a", "b?c"),
        ("/a#b?c", "/a", ""),
        ("*", "*", ""),
        ("http://x/a?b", "/a", "b"),
        ("http://x", "/", ""),
        ("/?u=http://x/y", "/", "u=http://x/y"),
    ],
)
def test_targets(target: str, path: str, query: str) -> None:
    assert split_target(target) == (path, query)


@pytest.mark.parametrize(
    ("head", "status", "reason", "length", "chunked"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2", 200, "OK", 2, False),
        (b"HTTP/1.0 404 Not  Found\nContent-Length: 2\nX: 1", 404, "Not  Found", 2, False),
        (b"HTTP/1.1 200", 200, "", None, False),
        (b"HTTP/1.1 200 ", 200, "", None, False),
        (b"HTTP/1.1 204 No\r\nContent-Length: 2", 204, "No", 0, False),
        (b"HTTP/1.1 304 No", 304, "No", 0, False),
        (b"HTTP/1.1 100 Continue", 100, "Continue", 0, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2", 200, "OK", None, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2", 200, "OK", 2, False),
        (b"HTTP/1.1 200 O\x1bK\r\nX-A: \x01", 200, "O\x1bK", None, False),
    ],
)
def test_responses(head: bytes, status: int, reason: str, length: int | None, chunked: bool) -> None:
    response = parse_response_head(head, has_body=True)
    assert (response.status, response.reason, response.length) == (status, reason, length)
    assert response.chunked is chunked


def test_a_response_to_head_has_no_body() -> None:
    head = parse_response_head(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: x", has_body=False)
    assert head.length == 0


def test_a_continued_field_of_a_response_is_joined() -> None:
    head = parse_response_head(b"HTTP/1.1 200 OK\r\nX-A: 1\r\n  2\n\t3\r\nX-B: 4", has_body=True)
    assert list(head.fields.items()) == [("X-A", "1 2 3"), ("X-B", "4")]


@pytest.mark.parametrize(
    "head",
    [
        b"220 this is no HTTP",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 OK",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3",
        b"HTTP/1.1 200 OK\r\nContent-Length: x",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nno field",
    ],
)
def test_responses_that_are_none(head: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_response_head(head, has_body=True)


def lines_run(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Count the lines of Python that a call runs; MalformedMessage is ignored."""
    count = 0

    def trace(_frame: Any, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments, **options)
    except MalformedMessage:
        pass
    finally:
        sys.settrace(before)
    return count


# Each would take hours if an expression looked at it again from every position.
LARGE = {
    "spaces in a value": GET + b"\r\nX: a" + b" " * (1 << 20) + b"b",
    "a name": GET + b"\r\n" + b"a" * (1 << 20),
    "carriage returns": GET + b"\r\nX: " + b"\r" * (1 << 20),
    "line feeds": GET + b"\n" * (1 << 20),
    "empty lines": GET + b"\r\n" * (1 << 19),
    "commas": GET + b"\r\nConnection: " + b" ," * (1 << 19),
    "spaces before the version": b"GET" + b" " * (1 << 20),
    "continuations": b"HTTP/1.1 200 OK" + b"\r\n " * (1 << 18),
    "spaces after the status": b"HTTP/1.1 200" + b" " * (1 << 20) + b"\n",
    "spaces before the status": b"HTTP/1.1" + b" " * (1 << 20) + b"x",
}


@pytest.mark.parametrize("head", LARGE.values(), ids=LARGE)
def test_the_work_for_a_large_head_is_bounded(head: bytes) -> None:
    assert lines_run(parse_request_head, head) < 20 * MAX_REQUEST_FIELDS
    assert lines_run(parse_response_head, head, has_body=True) < 20 * MAX_RESPONSE_FIELDS


PIECES = [
    *(b"GET", b"POST", b" ", b"/", b"/a?b", b"*", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n", b"\r", b"\t", b": ", b":"),
    *(b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"chunked", b"close", b"0", b"5", b",", b"\x00"),
    *(b"HTTP/1.1 200 OK\r\n", GET, b"X-A: 1", b"\xff", b"HTTP/1.1 204", b"\x0b", b"gzip", b"Upgrade: websocket"),
]
HEADS = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join),
    st.lists(st.sampled_from(PIECES), max_size=12).map(lambda pieces: GET + b"\r\n" + b"".join(pieces)),
)


@given(HEADS)
def test_whatever_is_received_is_parsed_or_malformed(head: bytes) -> None:
    for parse, options in ((parse_request_head, {}), (parse_response_head, {"has_body": True})):
        assert lines_run(parse, head, **options) <= 60 + 20 * head.count(b"\n")


@given(HEADS)
def test_what_is_accepted_is_what_aiohttp_reads_too(head: bytes) -> None:
    """Its parser is llhttp, as strict as we configure it nowhere: what we accept must mean the same to it."""
    try:
        ours = parse_request_head(head)
    except MalformedMessage:
        return
    loop: Any = None
    protocol = BaseProtocol(loop)
    try:
        messages, _, rest = _aiohttp_parser(protocol).feed_data(head + b"\r\n\r\n")
    except HttpProcessingError:
        # It is stricter about methods, versions and targets; neither changes what a request means.
        return
    assert len(messages) <= 1
    assert not rest or b"upgrade" in head.lower() or ours.method == "CONNECT"
    for theirs, _ in messages:
        assert (theirs.method, theirs.path) == (
            ours.method,
            ours.target.encode("latin-1").decode("utf-8", "surrogateescape"),
        )
        assert (theirs.version.major, theirs.version.minor) == (1, ours.minor)
        assert [name.decode() for name, _ in theirs.raw_headers] == [name for name, _ in ours.fields.items()]
        assert [value for _, value in theirs.raw_headers] == [
            value.encode("latin-1") for _, value in ours.fields.items()
        ]
        assert theirs.chunked is (ours.length is None)


def _aiohttp_parser(protocol: BaseProtocol) -> Any:
    loop: asyncio.AbstractEventLoop | Any = None
    return HttpRequestParser(protocol, loop, 2**16)
