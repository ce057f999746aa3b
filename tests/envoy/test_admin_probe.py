"""Which servers the probe takes for an admin: those that answer what it alone answers, however it is reached."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

from kumadp.envoy.admin_probe import PROBED_PATHS, AdminProber, ProbeAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Answer = Callable[[bytes], bytes | None]
    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ADMIN = "127.0.0.1:9901"
NOT_FOUND = b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n"


def page(path: str) -> bytes:
    """An admin's answer at one of its paths."""
    body = b"{" + PROBED_PATHS[path] + b"}"
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


def http(answer: Answer) -> Serve:
    """A server that answers the first request of each connection, and closes it without an answer for None."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            writer.write(answer(await reader.readuntil(b"\r\n\r\n")) or b"")
            await writer.drain()
        writer.close()

    return serve


@contextlib.asynccontextmanager
async def probed(serve: Serve, tls: ssl.SSLContext | None = None, timeout: float = 0.5) -> AsyncIterator[bool]:
    """Whether the probe takes this server for an admin."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        yield await AdminProber(ADMIN, timeout).is_admin(ProbeAddress("127.0.0.1", port))


@pytest.fixture
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("example.org").configure_cert(context)
    return context


def test_addresses_as_text_and_as_host() -> None:
    assert str(ProbeAddress("::1", 80)) == ProbeAddress("::1", 80).authority == "[::1]:80"
    assert str(ProbeAddress("192.0.2.1", 80)) == "192.0.2.1:80"
    assert str(ProbeAddress(path="/a")) == "unix:/a"
    assert ProbeAddress(path="/a").authority == "localhost"


@pytest.mark.parametrize("path", PROBED_PATHS)
async def test_a_route_to_any_of_the_paths_is_detected(path: str) -> None:
    def answer(request: bytes) -> bytes:
        return page(path) if request.startswith(f"GET {path} ".encode()) else NOT_FOUND

    async with probed(http(answer)) as is_admin:
        assert is_admin


async def test_a_route_by_the_admin_s_authority_is_detected() -> None:
    header = f"\r\nhost: {ADMIN}\r\n".encode()
    async with probed(http(lambda head: page("/server_info") if header in head else NOT_FOUND)) as is_admin:
        assert is_admin


async def test_a_cluster_whose_destination_the_client_names_is_detected() -> None:
    header = f"\r\nx-envoy-original-dst-host: {ADMIN}\r\n".encode()
    async with probed(http(lambda head: page("/server_info") if header in head else NOT_FOUND)) as is_admin:
        assert is_admin


async def test_a_tunnel_by_connect_is_detected() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(f"CONNECT {ADMIN} ".encode()):
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                writer.write(page("/server_info"))
            else:
                writer.write(NOT_FOUND)
            await writer.drain()
        writer.close()

    async with probed(serve) as is_admin:
        assert is_admin


async def test_a_listener_that_wants_the_proxy_protocol_is_detected() -> None:
    async with probed(http(lambda head: page("/server_info") if head.startswith(b"PROXY TCP4 ") else None)) as is_admin:
        assert is_admin


async def test_http_over_tls_is_detected_whatever_the_certificate(tls: ssl.SSLContext) -> None:
    async with probed(http(lambda _: page("/server_info")), tls, timeout=5.0) as is_admin:
        assert is_admin


@pytest.mark.parametrize("over_tls", [True, False])
async def test_http2_is_detected(tls: ssl.SSLContext, *, over_tls: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        with contextlib.suppress(Exception):
            while data := await reader.read(1 << 16):
                for event in connection.receive_data(data):
                    if isinstance(event, RequestReceived):
                        connection.send_headers(event.stream_id, [(":status", "200")])
                        connection.send_data(event.stream_id, PROBED_PATHS["/server_info"], end_stream=True)
                writer.write(connection.data_to_send())
        writer.close()

    tls.set_alpn_protocols(["h2"])
    async with probed(serve, tls if over_tls else None, timeout=5.0) as is_admin:
        assert is_admin


@pytest.mark.parametrize("over_tls", [True, False])
async def test_a_unix_socket_is_probed_by_path_and_by_abstract_name(
    tmp_path: Path, tls: ssl.SSLContext, *, over_tls: bool
) -> None:
    serve, prober = http(lambda _: page("/server_info")), AdminProber("localhost", 5.0)
    for path, name in ((f"{tmp_path}/x.sock", f"{tmp_path}/x.sock"), (f"\0{tmp_path}", f"@{tmp_path}")):
        async with await asyncio.start_unix_server(serve, path, ssl=tls if over_tls else None):
            assert await prober.is_admin(ProbeAddress(path=name))


@pytest.mark.parametrize(
    "answer",
    [NOT_FOUND, None, b"", b"\0\xff" * 100, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000, b"HTTP/1.1 200\r\n\r\nLIVE\n"],
)
async def test_other_servers_are_no_admin(answer: bytes | None) -> None:
    async with probed(http(lambda _: answer)) as is_admin:
        assert not is_admin


async def test_a_silent_server_costs_the_deadline_and_is_no_admin() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
            await asyncio.sleep(0)
        writer.close()

    begun = asyncio.get_running_loop().time()
    async with probed(serve, timeout=0.2) as is_admin:
        assert not is_admin
    assert 0.2 <= asyncio.get_running_loop().time() - begun < 5


async def test_nothing_that_changes_state_is_requested() -> None:
    heads: list[bytes] = []

    def answer(head: bytes) -> bytes:
        heads.append(head)
        return NOT_FOUND

    async with probed(http(answer)) as is_admin:
        assert not is_admin
    requests = {head.split(b" ")[0] for head in heads if not head.startswith(b"\x16")}
    assert requests <= {b"GET", b"CONNECT", b"PRI"}
    assert {head.split(b" ")[1].decode() for head in heads if head.startswith(b"GET ")} == set(PROBED_PATHS)
