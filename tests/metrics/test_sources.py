"""The HTTP client for one source: compression, limits, redirects and failures."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from typing import TYPE_CHECKING

import pytest

from kumadp.metrics.formats import Format
from kumadp.metrics.sources import ScrapeTarget, SourceFailed, open_source
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TEXT = "content-type: text/plain"


class Source:
    """A TCP server that sends scripted responses, and records the heads of the requests."""

    def __init__(self, *responses: bytes) -> None:
        self._responses = list(responses)
        self.heads: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(self._responses.pop(0))
        writer.close()

    def target(self, limit: int = 0) -> ScrapeTarget:
        return ScrapeTarget("app", f"http://127.0.0.1:{self.port}/metrics", limit=limit)


@contextlib.asynccontextmanager
async def serving(*responses: bytes) -> AsyncIterator[Source]:
    source = Source(*responses)
    server = await asyncio.start_server(source.serve, "127.0.0.1", 0)
    source.port = int(server.sockets[0].getsockname()[1])
    async with server:
        yield source


def response(body: bytes, *headers: str, status: int = 200) -> bytes:
    lines = (f"HTTP/1.1 {status} Text", *(headers or (TEXT,)), f"content-length: {len(body)}", "", "")
    return "\r\n".join(lines).encode() + body


async def read(target: ScrapeTarget, headers: dict[str, str] | None = None) -> tuple[Format, bytes]:
    async with open_source(target, headers or {}) as opened:
        return opened.format, b"".join([part async for part in opened.parts()])


async def test_format_and_body() -> None:
    async with serving(response(b"a 1\n", "content-type: application/openmetrics-text; version=1.0.0")) as source:
        assert await read(source.target(), {"Accept": "text/plain"}) == (Format.OPENMETRICS_1, b"a 1\n")
    lines = source.heads[0].lower().splitlines()
    assert {"accept: text/plain", "accept-encoding: gzip"} <= set(lines)
    assert not any(line.startswith("user-agent") for line in lines)


async def test_a_unix_socket_without_compression(tmp_path: Path) -> None:
    source = Source(response(b"a 1\n"))
    async with await asyncio.start_unix_server(source.serve, tmp_path / "s"):
        target = ScrapeTarget("envoy", "http://localhost/stats", str(tmp_path / "s"))
        assert await read(target) == (Format.TEXT, b"a 1\n")
    assert "accept-encoding" not in source.heads[0].lower()


async def test_gzip_in_several_members() -> None:
    body = gzip.compress(b"a 1\n") + gzip.compress(b"b 2\n" * 100_000)
    async with serving(response(body, TEXT, "content-encoding: gzip")) as source:
        assert (await read(source.target()))[1] == b"a 1\n" + b"b 2\n" * 100_000


async def test_a_redirect_on_the_same_host_is_followed() -> None:
    moved = response(b"", "location: /other", status=302)
    async with serving(moved, response(b"a 1\n")) as source:
        assert (await read(source.target()))[1] == b"a 1\n"
    assert [head.split()[1] for head in source.heads] == ["/metrics", "/other"]


BOMB = gzip.compress(b"a 1\n" * 1_000_000)
MOVED = response(b"", "location: /again", status=307)


@pytest.mark.parametrize(
    ("responses", "failure"),
    [
        ([response(b"no", status=500)], "it responded with status 500"),
        ([response(b"", "location: /x", status=301), response(b"", status=404)], "status 404 at /x, to which it"),
        ([response(b"", "location: http://203.0.113.1/", status=302)], "it redirects to another host"),
        ([MOVED] * 5, "it redirects more than 5 times"),
        ([response(b"\x01", "content-type: application/vnd.google.protobuf")], "protobuf, which was not requested"),
        ([response(b"x", TEXT, "content-encoding: br")], "encoded as br, which was not requested"),
        ([response(b"plain", TEXT, "content-encoding: gzip")], "is not gzip, although its header declares it"),
        ([response(gzip.compress(b"a 1\n")[:-9], TEXT, "content-encoding: gzip")], "its response broke off"),
        ([response(b"a 1\n")[:-2]], "its response broke off"),
        ([response(b"a" * (2 << 20))], "larger than 1 MB (--metrics-source-limit)"),
        ([response(BOMB, TEXT, "content-encoding: gzip")], "larger than 1 MB (--metrics-source-limit)"),
        ([b"SSH-2.0-OpenSSH\r\n\r\n"], "it is unreachable: "),
    ],
)
async def test_failures(responses: list[bytes], failure: str) -> None:
    async with serving(*responses) as source:
        with pytest.raises(SourceFailed) as caught:
            await read(source.target(1 << 20))
    assert failure in str(caught.value)


async def test_nobody_listens() -> None:
    with pytest.raises(SourceFailed, match="it is unreachable: Connection refused"):
        await read(ScrapeTarget("app", f"http://127.0.0.1:{free_port()}/metrics"))
