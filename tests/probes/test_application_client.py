"""The client of the application probe proxy: results of HTTP, TCP and gRPC probes, and gRPC's messages."""

from __future__ import annotations

import socket

import pytest

from kumadp.addresses import with_port
from kumadp.host.net.http1.fields import FieldList
from kumadp.probes.application_client import (
    HEALTHY,
    UNHEALTHY,
    ApplicationClient,
    encode_check,
    parse_status,
)
from kumadp.probes.probe_request import ProbeRequest
from tests.support.applications import FORBIDDEN, Applications
from tests.support.ports import free_port


@pytest.fixture
def client() -> ApplicationClient:
    return ApplicationClient(sourced=False)


async def host_of(port: int) -> str | None:
    return None if port == FORBIDDEN else "127.0.0.1"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", HEALTHY),
        ("/code/204", HEALTHY),
        ("/code/404", 404),
        ("/code/503", 503),
        ("/loop/8", HEALTHY),
        ("/loop/9", UNHEALTHY),
        ("/to/other", HEALTHY),
        ("/to/forbidden", HEALTHY),
    ],
)
async def test_http(apps: Applications, client: ApplicationClient, path: str, status: int) -> None:
    request = ProbeRequest("http", apps.web.port, path)
    assert await client.http("127.0.0.1", request, FieldList(), host_of) == status


async def test_an_unknown_scheme_is_unhealthy(apps: Applications, client: ApplicationClient) -> None:
    headers = FieldList([("X-Kuma-Probes-Scheme", "GOPHER")])
    requests = len(apps.web.seen)
    assert await client.http("127.0.0.1", ProbeRequest("http", apps.web.port), headers, host_of) == UNHEALTHY
    assert len(apps.web.seen) == requests


async def test_tcp(client: ApplicationClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert await client.tcp("127.0.0.1", server.getsockname()[1]) == HEALTHY
    with pytest.raises(ConnectionRefusedError):
        await client.tcp("127.0.0.1", free_port())


@pytest.mark.parametrize(("service", "status"), [("", HEALTHY), ("down", UNHEALTHY), ("unknown", UNHEALTHY)])
async def test_grpc(apps: Applications, client: ApplicationClient, service: str, status: int) -> None:
    assert await client.grpc("127.0.0.1", apps.grpc, service) == status


@pytest.mark.parametrize(
    ("service", "message"),
    [("", b""), ("a", b"\x0a\x01a"), ("ä", b"\x0a\x02\xc3\xa4"), ("a" * 200, b"\x0a\xc8\x01" + b"a" * 200)],
)
def test_health_check_requests(service: str, message: bytes) -> None:
    assert encode_check(service) == message


@pytest.mark.parametrize(
    ("message", "status"),
    [(b"\x08\x01", 1), (b"\x08\x02", 2), (b"", 0), (b"\x08", 0), (b"\x10\x01", 0), (b"\x08\xff\x01", 0)],
)
def test_health_check_responses(message: bytes, status: int) -> None:
    assert parse_status(message) == status


def test_with_port() -> None:
    assert (with_port("127.0.0.1", 80), with_port("::1", 80)) == ("127.0.0.1:80", "[::1]:80")
