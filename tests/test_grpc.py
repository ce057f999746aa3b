"""A gRPC status as peers write it, good and bad."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

from kumadp.grpc.call import StreamEnded
from kumadp.grpc.client import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def answering(trailers: list[tuple[str, bytes]], over: asyncio.Event) -> Callable[..., Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        config = H2Configuration(client_side=False, validate_outbound_headers=False)
        http = H2Connection(config)
        http.initiate_connection()
        writer.write(http.data_to_send())
        while data := await reader.read(65536):
            for event in http.receive_data(data):
                if isinstance(event, RequestReceived):
                    assert event.stream_id is not None
                    http.send_headers(event.stream_id, [(":status", "200"), *trailers], end_stream=True)
            writer.write(http.data_to_send())
        writer.close()
        over.set()

    return serve


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (b"0", 0),
        (b"14", 14),
        (b"", None),
        (b"-1", None),
        (b"x", None),
        (b"9" * 5000, None),
        (b"1e9", None),
        ("²".encode(), None),
        (b"\xff", None),
    ],
)
async def test_a_status_that_is_no_number_is_none(status: bytes, code: int | None) -> None:
    over = asyncio.Event()
    server = await asyncio.start_server(answering([("grpc-status", status)], over), "127.0.0.1", 0)
    async with server, asyncio.timeout(30):
        address = server.sockets[0].getsockname()
        wire = await connect(address, authority="a", tls=None, server_name="", ping=None)
        call = await wire.call("/a.B/C", {})
        with pytest.raises(StreamEnded) as ended:
            await call.receive()
        assert ended.value.status == code
        call.close()
        await wire.close()
        await over.wait()
