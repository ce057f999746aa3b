"""Envoy's side of the relay, spoken to by grpclib's own client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
from grpclib import GRPCError, Status
from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import StreamTerminatedError

from kumadp.grpc.server import GrpcServer
from kumadp.host.net.serve import bind_unix
from kumadp.relay.dialect import Sotw
from kumadp.relay.downstream import Downstream
from tests.support.event_loops import on_both_loops
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA_ON_NO_STREAM = b"\0\0\1" + bytes(6) + b"x"


class Raw(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


class Side:
    """A server with what its streams did, and a client."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[tuple[Any, ...]] = []
        self.down = Downstream(self, lambda pid: 7 if pid == os.getpid() else 0)

    def down_opened(self, stream: int, epoch: int) -> None:
        self.events.append(("opened", stream, epoch))

    def down_message(self, stream: int, data: bytes) -> None:
        self.events.append(("message", stream, data))

    def down_closed(self, stream: int) -> None:
        self.events.append(("closed", stream))

    async def until(self, *event: Any) -> None:
        async def seen() -> bool:
            return event in self.events

        await poll_async(seen, what=str(event))

    def channel(self, window: int = 4 << 20) -> Channel:
        windows = Configuration(http2_connection_window_size=window, http2_stream_window_size=window)
        return Channel(path=str(self.path), codec=Raw(), config=windows)


@contextlib.asynccontextmanager
async def serving(path: Path, allowed: Callable[[int], bool] = lambda _uid: True) -> AsyncIterator[Side]:
    side = Side(path)
    server = GrpcServer({Sotw.method: side.down.serve}, allowed)
    sock = bind_unix(path)
    server.start(sock)
    try:
        yield side
    finally:
        await server.close()
        sock.close()


def stream_of(channel: Channel, path: str = Sotw.method) -> Any:
    return channel.request(path, Cardinality.STREAM_STREAM, bytes, bytes)


@on_both_loops
async def test_messages_of_any_size_pass_whole(tmp_path: Path) -> None:
    large = os.urandom(20 << 20)
    async with serving(tmp_path / "s") as side, side.channel() as channel, stream_of(channel) as stream:
        await stream.send_message(b"")
        await side.until("message", 1, b"")
        assert side.events[0] == ("opened", 1, 7)
        for message in (b"", b"small", large):
            side.down.send(1, "type", message)
            assert await stream.recv_message() == message
        await stream.send_message(large)
        await side.until("message", 1, large)
        await stream.end()
    await side.until("closed", 1)


@on_both_loops
async def test_for_an_envoy_that_does_not_read_only_the_newest_of_a_type_waits(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as side, side.channel(window=1 << 16) as channel, stream_of(channel) as stream:
        await stream.send_message(b"hello")
        await side.until("message", 1, b"hello")
        side.down.send(1, "clusters", b"1" * (4 << 20))
        await asyncio.sleep(0.2)
        for version in b"2345":
            side.down.send(1, "clusters", bytes([version]) * (4 << 20))
            side.down.send(1, "listeners", b"%c" % version)
        got = [(await stream.recv_message())[:1] for _ in range(3)]
        assert got == [b"1", b"5", b"5"]
        await stream.cancel()
    await side.until("closed", 1)
    side.down.send(1, "clusters", b"too late")


@on_both_loops
async def test_what_is_not_served_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as side, side.channel() as channel:
        stream = await stream_of(channel, "/some.Service/Method").__aenter__()
        await stream.send_request(end=True)
        assert await stream.recv_message() is None
        with pytest.raises(GRPCError) as refused:
            await stream.recv_trailing_metadata()
        assert refused.value.status is Status.UNIMPLEMENTED


@on_both_loops
async def test_a_peer_that_is_not_allowed_receives_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", lambda _uid: False) as side:
        reader, writer = await asyncio.open_unix_connection(side.path)
        assert await reader.read() == b""
        writer.close()


@on_both_loops
async def test_peers_that_break_off_or_talk_nonsense_leave_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(tmp_path / "s") as side:
        for nonsense in (b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", PREFACE + DATA_ON_NO_STREAM):
            reader, writer = await asyncio.open_unix_connection(side.path)
            writer.write(nonsense)
            async with asyncio.timeout(10):
                await reader.read()
            writer.close()
        for number in (1, 2, 3):
            channel = side.channel()
            with contextlib.suppress(StreamTerminatedError):
                async with stream_of(channel) as stream:
                    await stream.send_message(b"hello")
                    await side.until("message", number, b"hello")
                    side.down.send(number, "type", b"x" * (8 << 20))
                    channel._protocol.connection._transport.abort()  # type: ignore[union-attr]
                    await stream.recv_message()
            channel.close()
            await side.until("closed", number)
    assert "Traceback" not in caplog.text
    assert [entry for entry in caplog.records if entry.levelno >= logging.WARNING] == []


@on_both_loops
async def test_the_end_of_the_server_ends_its_streams(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as side:
        channel = side.channel()
        stream = await stream_of(channel).__aenter__()
        await stream.send_message(b"hello")
        await side.until("message", 1, b"hello")
    assert ("closed", 1) in side.events
    with pytest.raises((StreamTerminatedError, GRPCError)):
        await stream.recv_message()
    channel.close()
