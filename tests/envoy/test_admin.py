"""The client of Envoy's admin, against servers that answer anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kumadp.bootstrap.admin_address import TcpAdmin, UnixAdmin
from kumadp.decoding import Undecodable
from kumadp.envoy.admin import AdminClient, AdminUnreachable, post
from kumadp.host.descriptors import is_exhausted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from kumadp.bootstrap.admin_address import AdminAddress

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class Server:
    """Answers each connection with the same bytes; ``None``: not at all."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if self.answer is None:
                await reader.read()
                self.closed.set()
            else:
                writer.write(self.answer)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def serving(answer: bytes | None, path: Path | None = None) -> AsyncIterator[tuple[Server, AdminClient]]:
    """A server and a client of it, on a Unix socket if there is a ``path``."""
    server = Server(answer)
    address: AdminAddress
    if path is not None:
        listening = await asyncio.start_unix_server(server.serve, path)
        address = UnixAdmin(str(path))
    else:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        address = TcpAdmin("127.0.0.1", listening.sockets[0].getsockname()[1])
    client = AdminClient(address)
    async with listening:
        yield server, client
        await client.close()


async def test_a_request_over_tcp_and_over_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:1")
    for path in (None, tmp_path / "admin.sock"):
        async with serving(OK, path) as (server, client):
            assert await client.get("/config_dump?resource=x&name_regex=%5Ea%7Cb%24") == (200, b"hi")
            assert await client.post("/drain_listeners?inboundonly&graceful&skip_exit") == 200
            host = "localhost" if isinstance(client.address, UnixAdmin) else str(client.address)
            first, second = (request.decode().lower() for request in server.requests)
            assert first.startswith("get /config_dump?resource=x&name_regex=%5ea%7cb%24 http/1.1\r\n")
            assert f"\r\nhost: {host}\r\n" in first
            assert "gzip" not in first
            assert second.startswith("post /drain_listeners?inboundonly&graceful&skip_exit http/1.1\r\n")
            assert "\r\ncontent-length: 0\r\n" in second


async def test_each_request_has_its_own_connection() -> None:
    async with serving(OK + OK) as (server, client):
        assert [await client.get("/a"), await client.get("/b")] == [(200, b"hi")] * 2
        assert len(server.requests) == 2


async def test_no_redirect_is_followed() -> None:
    async with serving(b"HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n") as (server, client):
        assert await client.get("/ready") == (302, b"")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\xff" * 100,
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 99999 ?\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
    ],
)
async def test_any_unusable_answer_is_admin_unreachable(answer: bytes, tmp_path: Path) -> None:
    for path in (None, tmp_path / "admin.sock"):
        async with serving(answer, path) as (_, client):
            with pytest.raises(AdminUnreachable):
                await client.get("/ready")
            with pytest.raises(OSError, match=r"^POST /x: ."):
                await post(client, "/x")


async def test_a_compressed_answer_stays_as_it_is() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n"
    async with serving(head + b"\x1f\x8b") as (_, client):
        assert await client.get("/ready") == (200, b"\x1f\x8b")


async def test_an_answer_without_end_is_cut_off() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 << 20)) as (_, unbounded):
        assert len((await unbounded.get("/ready"))[1]) == 2 << 20
        client = AdminClient(unbounded.address, largest_body=1 << 20)
        with pytest.raises(AdminUnreachable, match="larger than 1 MiB"):
            await client.get("/ready")
        await client.close()


async def test_a_silent_server_costs_the_deadline_and_the_connection_is_closed() -> None:
    async with serving(None) as (server, client):
        with pytest.raises(AdminUnreachable, match=r"no answer within 0\.2 s"):
            await client.get("/ready", timeout=0.2)
        await asyncio.wait_for(server.closed.wait(), 10)


async def test_nobody_at_the_address_is_unreachable_with_the_reason(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for address, reason in (
        (TcpAdmin("127.0.0.1", port), "Connection refused"),
        (UnixAdmin(str(tmp_path / "none")), "No such file or directory"),
        (UnixAdmin("/x" * 100), "AF_UNIX path too long"),
    ):
        client = AdminClient(address)
        with pytest.raises(AdminUnreachable) as unreachable:
            await client.get("/ready")
        assert str(unreachable.value) == reason
        assert not is_exhausted(unreachable.value)
        await client.close()


async def test_without_descriptors_the_error_names_the_reason(tmp_path: Path) -> None:
    for path in (None, tmp_path / "admin.sock"):
        async with serving(OK, path) as (_, client):
            assert await client.get("/ready") == (200, b"hi")
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            used = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - a list of names
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
            fillers: list[int] = []
            try:
                with contextlib.suppress(OSError):
                    while True:
                        fillers.append(os.dup(0))
                with pytest.raises(AdminUnreachable) as unreachable:
                    await client.get("/ready")
                assert is_exhausted(unreachable.value)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for filler in fillers:
                    os.close(filler)


async def test_it_moves_to_another_address_and_ends_requests_under_way(tmp_path: Path) -> None:
    async with serving(None) as (_, client), serving(OK, tmp_path / "admin.sock") as (_, other):
        under_way = asyncio.ensure_future(client.get("/ready"))
        await asyncio.sleep(0.1)
        await client.move_to(other.address)
        with pytest.raises(AdminUnreachable):
            await asyncio.wait_for(under_way, 2)
        assert await client.get("/ready") == (200, b"hi")


async def test_once_closed_every_request_fails() -> None:
    async with serving(OK) as (_, client):
        await client.get("/ready")
        await client.close()
        with pytest.raises(AdminUnreachable, match="Envoy has ended"):
            await client.get("/ready")


async def test_state_and_statistics() -> None:
    async with serving(b"HTTP/1.1 503 x\r\ncontent-length: 9\r\n\r\nDRAINING\n") as (_, client):
        assert await client.ready() == (False, "DRAINING")
    body = b'{"stats":[{"name":"a","value":3},{"name":"b","value":"x"},{"histograms":{}}]}'
    async with serving(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body) as (server, client):
        assert await client.stats("^a|b$") == {"a": 3}
        assert server.requests[0].startswith(b"GET /stats?format=json&filter=%5Ea%7Cb%24 ")
    async with serving(OK) as (_, client):
        with pytest.raises(Undecodable):
            await client.stats("a")


async def test_a_post_that_is_not_answered_with_200_is_an_oserror() -> None:
    async with serving(b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n") as (_, client):
        with pytest.raises(OSError, match="POST /x was answered with 404"):
            await post(client, "/x")


def test_the_http_library_is_imported_with_the_first_request() -> None:
    code = "import sys, kumadp.envoy.component; print(*(m for m in ('aiohttp', 'httpx', 'anyio') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
