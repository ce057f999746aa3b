"""Health streams: whose reports reach the control plane, and how each side ends. The calls are simulated."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

import pytest

from kumadp.grpc.call import Call, StreamEnded
from kumadp.relay.health import HDS, HealthRelay
from kumadp.relay.health_admin import with_admin_socket
from tests.relay.test_health_admin import PATH, SOCKET, check, first_message, specifier
from tests.support.event_loops import on_both_loops
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class FakeStream:
    """One stream: what is put comes out of ``receive``, a StreamEnded is raised there; ``sent`` is what was sent."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes | StreamEnded] = asyncio.Queue()
        self.sent: list[bytes] = []
        self.finished: tuple[int, str] | None = None

    async def receive(self, *, largest: int = 0) -> bytes:
        message = await self.incoming.get()
        if isinstance(message, StreamEnded):
            raise message
        return message

    async def send(self, message: bytes) -> None:
        self.sent.append(message)

    async def finish(self, status: int, text: str = "") -> None:
        self.finished = (status, text)

    def close(self) -> None:
        pass


class Streams:
    """The health streams of Envoys, pid and epoch being the same number, and those to the control plane."""

    def __init__(self) -> None:
        self.up: list[FakeStream] = []
        self.health = HealthRelay(self.open, lambda pid: pid)

    async def open(self, path: str) -> Call:
        assert path == HDS
        self.up.append(FakeStream())
        return cast("Call", self.up[-1])

    @contextlib.asynccontextmanager
    async def envoy(self, epoch: int, first: bytes = b"") -> AsyncIterator[FakeStream]:
        call, first = FakeStream(), first or b"request %d" % epoch
        call.incoming.put_nowait(first)
        count = len(self.up)
        task = asyncio.create_task(self.health.serve(cast("Call", call), epoch))
        await until(lambda: len(self.up) > count and self.up[-1].sent == [first], "the request")
        try:
            yield call
        finally:
            call.incoming.put_nowait(StreamEnded(None, "gone"))
            await task


async def until(seen: object, what: str) -> None:
    async def probe() -> bool:
        return bool(seen())  # type: ignore[operator]

    await poll_async(probe, what=what)


async def settle(call: FakeStream) -> None:
    """Wait until what was put has been read."""
    await until(call.incoming.empty, "everything read")
    for _ in range(5):
        await asyncio.sleep(0)


@on_both_loops
async def test_only_the_newest_envoy_reports_and_none_during_a_takeover() -> None:
    streams = Streams()
    async with streams.envoy(0) as old:
        old.incoming.put_nowait(b"old 1")
        await until(lambda: streams.up[0].sent[1:] == [b"old 1"], "a report")
        streams.health.hold = True
        async with streams.envoy(1) as new:
            for call, report in ((old, b"old 2"), (new, b"new 2")):
                call.incoming.put_nowait(report)
                await settle(call)
            streams.health.hold = False
            for call, report in ((old, b"old 3"), (new, b"from before it was LIVE"), (new, b"new 3")):
                call.incoming.put_nowait(report)
                await settle(call)
            assert streams.up[0].sent[1:] == [b"old 1"]
            assert streams.up[1].sent[1:] == [b"new 3"]
        old.incoming.put_nowait(b"old 4")
        await until(lambda: streams.up[0].sent[1:] == [b"old 1", b"old 4"], "reports of the one that is left")


@on_both_loops
async def test_messages_of_the_control_plane_and_its_end_are_passed_on() -> None:
    streams = Streams()
    async with streams.envoy(0) as envoy:
        streams.up[0].incoming.put_nowait(b"check this")
        await until(lambda: envoy.sent == [b"check this"], "a specifier")
        streams.up[0].incoming.put_nowait(StreamEnded(12, "no health checks here"))
        await until(lambda: envoy.finished == (12, "no health checks here"), "the end")


@on_both_loops
async def test_a_broken_connection_is_hidden_from_envoy() -> None:
    streams = Streams()
    async with streams.envoy(0) as envoy:
        streams.up[0].incoming.put_nowait(StreamEnded(None, "Connection lost"))
        await until(lambda: len(streams.up) == 2 and streams.up[1].sent == [b"request 0"], "the request again")
        envoy.incoming.put_nowait(b"report")
        await until(lambda: streams.up[1].sent[1:] == [b"report"], "a report")
        assert envoy.finished is None


@on_both_loops
@pytest.mark.parametrize("ends", [False, True], ids=["the same control plane", "the next version of it"])
async def test_the_first_report_after_a_change_of_what_to_check_is_not_passed_on(ends: bool) -> None:
    """It may come before Envoy has checked what is new, which it reports as unhealthy until then (1.40)."""
    streams = Streams()
    async with streams.envoy(0) as envoy:

        async def specify(specifier: bytes) -> None:
            count = len(envoy.sent)
            streams.up[-1].incoming.put_nowait(specifier)
            await until(lambda: envoy.sent[count:] == [specifier], "a specifier")

        async def report(report: bytes) -> None:
            envoy.incoming.put_nowait(report)
            await settle(envoy)

        await specify(b"check kuma:envoy:admin")
        await report(b"checked 1")
        # It changes nothing in Envoy.
        await specify(b"check kuma:envoy:admin")
        await report(b"checked 2")
        await until(lambda: streams.up[0].sent[1:] == [b"checked 1", b"checked 2"], "reports")
        if ends:
            streams.up[0].incoming.put_nowait(StreamEnded(None, "Connection lost"))
            await until(lambda: len(streams.up) == 2 and streams.up[1].sent, "the stream to the next one")
        up = streams.up[-1]
        before = len(up.sent)
        await specify(b"check system_envoy_admin")
        await report(b"not checked yet")
        await report(b"checked 3")
        await until(lambda: up.sent[before:] == [b"checked 3"], "the report of what was checked")


@on_both_loops
async def test_the_admin_is_checked_where_the_envoy_of_the_stream_has_it() -> None:
    """During a reload two Envoys can have bootstraps of two versions of the control plane."""
    streams = Streams()
    sent = specifier(check("kuma:envoy:admin", 9901, httpHealthCheck={"path": "/ready"})).SerializeToString()
    async with streams.envoy(0) as plain, streams.envoy(1, first_message(**{SOCKET: PATH})) as with_socket:
        for up in streams.up:
            up.incoming.put_nowait(sent)
        await until(lambda: plain.sent and with_socket.sent, "specifiers")
        assert plain.sent == [sent]
        assert with_socket.sent == [with_admin_socket(sent, PATH)]
