"""Bodies of HTTP/1.1 messages, received in pieces of any size."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumadp.host.net.http1.bodies import BodyDecoder
from kumadp.host.net.http1.heads import MalformedMessage
from tests.host.test_http1_heads import lines_run

LARGE = 1 << 20


def chunked(keep: int = LARGE) -> BodyDecoder:
    return BodyDecoder(None, chunked=True, keep=keep)


def feed(body: BodyDecoder, data: bytes, cuts: list[int]) -> bytes:
    """Feed data in pieces; returns what is behind the body."""
    rest = b""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        if body.complete:
            rest += data[start:end]
        else:
            rest += body.feed(data[start:end])
    return rest


def encoded(parts: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    chunks = b"".join(b"%X%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return chunks + b"0\r\n" + trailers + b"\r\n"


CUTS = st.lists(st.integers(0, 500), max_size=8)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.binary(max_size=20), CUTS)
def test_chunks(parts: list[bytes], rest: bytes, cuts: list[int]) -> None:
    body = chunked()
    assert feed(body, encoded(parts, b";a=b", b"X-A: 1\r\n") + rest, cuts) == rest
    assert body.complete
    assert bytes(body.content) == b"".join(parts)
    assert body.received == len(body.content)


@given(st.binary(max_size=60), st.binary(max_size=20), CUTS)
def test_a_stated_length(content: bytes, rest: bytes, cuts: list[int]) -> None:
    body = BodyDecoder(len(content), chunked=False, keep=10)
    assert body.complete is (not content)
    assert feed(body, content + rest, cuts) == rest
    assert body.complete
    assert (bytes(body.content), body.received) == (content[:10], len(content))


def test_until_the_connection_ends() -> None:
    body = BodyDecoder(None, chunked=False, keep=3)
    assert body.until_end
    assert body.feed(b"ab") == body.feed(b"cde") == b""
    assert (bytes(body.content), body.received, body.complete) == (b"abc", 5, False)
    assert not chunked().until_end


MALFORMED = {
    "no size": b"\r\nx\r\n",
    "a sign": b"+1\r\nx\r\n",
    "a prefix": b"0x1\r\nx\r\n",
    "an underscore": b"1_0\r\n",
    "a huge size": b"1" * 16 + b"\r\n",
    "a space first": b" 1\r\nx\r\n",
    "bare LF after the size": b"1\nx\r\n",
    "bare LF after the data": b"1\r\nx\n",
    "more data than its size": b"1\r\nxy\r\n",
    "control character in an extension": b"1;\x00\r\nx\r\n",
    "a size line without end": b"1;" + b"a" * 5000,
    "a trailer without end": b"0\r\n" + b"a" * 5000,
    "many trailers": b"0\r\n" + b"X: 1\r\n" * 100 + b"\r\n",
    "many chunks": b"1\r\nx\r\n" * 20_000,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_chunks(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        chunked().feed(data)


@given(
    st.binary(max_size=200) | st.lists(st.sampled_from([b"1", b"a", b"\r\n", b"0", b";", b"\n", b"xyz"])).map(b"".join),
    CUTS,
)
def test_whatever_is_received_is_a_body_or_malformed(data: bytes, cuts: list[int]) -> None:
    whole, pieces = chunked(), chunked()
    results = []
    for body, places in ((whole, []), (pieces, cuts)):
        try:
            results.append((feed(body, data, places), bytes(body.content), body.complete))
        except MalformedMessage:
            results.append((b"", b"malformed", False))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (b"%x\r\n" % LARGE + bytes(LARGE), 60),
        (b"1\r\nx\r\n" * 10_000, 10_000 * 60),
        (b"f" * LARGE, 20),
        (b"1;" + b";" * LARGE, 20),
    ],
)
def test_the_work_is_bounded(data: bytes, most: int) -> None:
    assert lines_run(chunked().feed, data) <= most


def test_a_body_byte_by_byte_costs_no_more_than_its_bytes() -> None:
    data = encoded([b"x" * 50] * 20)
    body = chunked()
    assert lines_run(lambda: [body.feed(data[at : at + 1]) for at in range(len(data))]) < 50 * len(data)
    assert body.complete
