"""Senders of OTLP messages, without the pipe in front: requests, retries, and the texts of failures."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import threading
from typing import TYPE_CHECKING

import grpc
import pytest

from kumadp.otel.routes import Collector, Route
from kumadp.otel.senders import (
    DEADLINE_EXCEEDED,
    UNKNOWN,
    ExportRejected,
    GrpcSender,
    HttpSender,
    method,
    sender_for,
)
from tests.support.collector import ANSWERS, grpc_collector, http_collector, message
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kumadp.otel.senders import Sender

pytestmark = pytest.mark.process

UNAVAILABLE = 14
MESSAGE = message("traces").SerializeToString()


@contextlib.asynccontextmanager
async def sender(protocol: str, endpoint: str) -> AsyncIterator[tuple[Sender, Collector]]:
    collector = Collector(protocol, endpoint)
    created = sender_for(collector)
    try:
        yield created, collector
    finally:
        await created.close()


def test_the_protocol_decides_on_the_sender() -> None:
    assert isinstance(sender_for(Collector("grpc", "c:4317")), GrpcSender)
    assert isinstance(sender_for(Collector("http/protobuf", "c:4318")), HttpSender)


@pytest.mark.parametrize(
    ("signal", "path"),
    [
        ("traces", "/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
        ("logs", "/opentelemetry.proto.collector.logs.v1.LogsService/Export"),
        ("metrics", "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"),
    ],
)
def test_grpc_methods(signal: str, path: str) -> None:
    assert method(signal) == path


@pytest.mark.parametrize("compress", [False, True])
async def test_grpc_returns_the_response_of_the_collector(compress: bool) -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        async with sender("grpc", f"127.0.0.1:{port}") as (grpc_sender, to):
            route = Route(to, headers={"Api-Key": "k"}, gzip=compress)
            response = await grpc_sender.send("traces", route, MESSAGE)
    assert ANSWERS["traces"].FromString(response).partial_success.error_message == "taken"
    assert collector.exports[0].message == message("traces")
    assert collector.exports[0].headers["api-key"] == "k"


async def test_grpc_reconnects_after_a_restart_of_the_collector() -> None:
    port = free_port()
    async with sender("grpc", f"127.0.0.1:{port}") as (grpc_sender, to):
        for _ in range(2):
            with grpc_collector(f"127.0.0.1:{port}") as (collector, _):
                await grpc_sender.send("traces", Route(to), MESSAGE)
                assert len(collector.exports) == 1


async def test_an_http_response_that_is_not_protobuf_is_empty() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = next(int(line.partition(":")[2]) for line in head.splitlines() if line.startswith("content-length"))
        bodies.append(gzip.decompress(await reader.readexactly(size)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    bodies: list[bytes] = []
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with sender("http/protobuf", endpoint) as (http_sender, to):
            assert await http_sender.send("traces", Route(to, "/v1/traces", gzip=True), MESSAGE) == b""
    assert bodies == [MESSAGE]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_an_unreachable_collector(protocol: str) -> None:
    async with sender(protocol, f"127.0.0.1:{free_port()}") as (unreachable, to):
        with pytest.raises(ExportRejected, match="the collector is unreachable: Connection refused") as caught:
            await unreachable.send("traces", Route(to, "/v1/traces"), MESSAGE)
    assert caught.value.status == UNAVAILABLE


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_collector_without_a_response(protocol: str) -> None:
    opened = grpc_collector("127.0.0.1:0") if protocol == "grpc" else http_collector()
    with opened as (collector, port):
        collector.held = threading.Event()
        async with sender(protocol, f"127.0.0.1:{port}") as (slow, to):
            with pytest.raises(ExportRejected, match=r"did not answer within 0\.2 s") as caught:
                await slow.send("traces", Route(to, "/v1/traces", timeout=0.2), MESSAGE)
        collector.held.set()
    assert caught.value.status == DEADLINE_EXCEEDED


async def test_a_rejection_has_the_status_and_the_text_of_the_collector() -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        collector.refuses = (grpc.StatusCode.PERMISSION_DENIED, "x" * 5000)
        async with sender("grpc", f"127.0.0.1:{port}") as (grpc_sender, to):
            with pytest.raises(ExportRejected, match="responded with status 7: x") as caught:
                await grpc_sender.send("traces", Route(to), MESSAGE)
    assert caught.value.status == 7
    assert str(caught.value).count("x") == 1024


@pytest.mark.parametrize(("status", "code"), [(400, UNKNOWN), (429, UNAVAILABLE), (503, UNAVAILABLE)])
async def test_http_errors_are_grpc_statuses(status: int, code: int) -> None:
    with http_collector() as (collector, port):
        collector.refuses = (status, "no room")
        async with sender("http/protobuf", f"127.0.0.1:{port}") as (http_sender, to):
            with pytest.raises(ExportRejected, match=f"responded with status {status}: no room") as caught:
                await http_sender.send("traces", Route(to, "/v1/traces"), MESSAGE)
    assert caught.value.status == code
