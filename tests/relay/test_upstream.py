"""The stream to the control plane, against a control plane with grpclib's own server behind TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ControlPlaneRefused
from kumadp.grpc.call import LARGEST
from kumadp.relay.dialect import Sotw, XdsProtocol
from kumadp.relay.messages import CLUSTER, LISTENER, Request, Response, outline
from kumadp.relay.node import encode_node
from kumadp.relay.protocol_choice import ProtocolChoice
from kumadp.relay.refusal import StreamBackoff, StreamRefusal
from kumadp.relay.upstream import Dial, UpstreamConnection, UpstreamOptions, UpstreamState
from tests.relay.upstream_owner import NODE, UpstreamOwner, running
from tests.support.event_loops import on_both_loops
from tests.support.xds.journal import What
from tests.support.xds.resources import static_cluster

if TYPE_CHECKING:
    from kumadp.grpc.call import Oversized
    from tests.support.xds.plane import XdsControlPlane

TOKEN = "aaaaaaaa.the-token-nobody-may-see.cccccccc"


class Peer(UpstreamOwner):
    """Subscribes to clusters and takes all that comes."""

    def __init__(self, plane: XdsControlPlane, largest: int = LARGEST) -> None:
        self.plane = plane
        self.addresses: tuple[tuple[str, int], ...] = (("localhost", plane.xds_port),)
        self.token = TOKEN
        self.ca = plane.ca
        self.opened = self.closed = self.dials = 0
        self.received: list[Response] = []
        self.failing: Exception | None = None
        self.oversized: list[Oversized] = []
        self.refuses = True
        self.choice = ProtocolChoice()
        self.upstream = UpstreamConnection(
            self.dial, self, UpstreamOptions(time.monotonic, choice=self.choice, largest=largest)
        )

    async def dial(self) -> Dial:
        self.dials += 1
        if self.failing is not None:
            raise self.failing
        context = ssl.create_default_context(cadata=self.ca)
        return Dial(self.addresses, context, "localhost", self.token)

    async def upstream_opening(self, protocol: XdsProtocol) -> str:
        assert protocol is XdsProtocol.SOTW
        return Sotw.method

    def upstream_opened(self) -> None:
        self.opened += 1
        self.upstream.send(Request(CLUSTER, node=NODE).encode())

    async def upstream_message(self, data: bytes) -> None:
        response = Response.parse(data)
        self.received.append(response)
        self.upstream.send(Request(CLUSTER, response.version, nonce=response.nonce).encode())

    def upstream_oversized(self, message: Oversized) -> bool:
        self.oversized.append(message)
        return self.refuses

    def upstream_closed(self) -> None:
        self.closed += 1

    async def until_state(self, state: UpstreamState) -> None:
        await self.until(lambda: self.upstream.facts.state is state, f"state {state}")


@pytest.fixture
def served(plane: XdsControlPlane) -> XdsControlPlane:
    plane.mesh("default.web").inbound(15001, 8080)
    return plane


@on_both_loops
async def test_the_stream_opens_and_the_token_goes_with_it(served: XdsControlPlane) -> None:
    seen: list[str] = []

    def look(token: str) -> str:
        seen.append(token)
        return ""

    served.faults.refuse_token = look
    async with running(Peer(served)) as peer:
        await peer.until(lambda: peer.received, "a response")
        assert peer.upstream.facts.address == f"localhost:{served.xds_port}"
        assert peer.upstream.facts.state is UpstreamState.OPEN
    assert seen == [TOKEN]


@on_both_loops
async def test_a_response_that_is_too_large_is_dropped_and_the_stream_goes_on(served: XdsControlPlane) -> None:
    mesh = served.mesh("default.web")
    peer = Peer(served, largest=50_000)
    async with running(peer):
        await peer.until(lambda: len(peer.received) == 1, "the first response")
        stream = served.streams("default.web")
        for number in range(20):
            mesh.trees[CLUSTER][f"c{number}"] = static_cluster(f"c{number}" + "x" * 4000, "127.0.0.1", 1)
        mesh.apply()
        await peer.until(lambda: peer.oversized, "a response that is too large")
        message = peer.oversized[0]
        assert message.size > 50_000
        found = outline(message.head, message.tail)
        assert found.type_url == CLUSTER
        assert found.version == served.version_of("default.web", CLUSTER)
        peer.upstream.send(Request(CLUSTER, peer.received[0].version, nonce=found.nonce, error=b"\x08\x08").encode())
        for number in range(20):
            del mesh.trees[CLUSTER][f"c{number}"]
        mesh.apply()
        await peer.until(lambda: len(peer.received) == 2, "a smaller one")
        assert served.streams("default.web") == stream


@on_both_loops
async def test_a_dropped_response_that_cannot_be_rejected_ends_the_stream(served: XdsControlPlane) -> None:
    peer = Peer(served, largest=10)
    peer.refuses = False
    async with running(peer):
        await peer.until(lambda: "cannot be read" in peer.upstream.facts.last_error, "the reason")
        assert peer.upstream.facts.state is not UpstreamState.OPEN
    assert peer.received == []


@on_both_loops
async def test_a_changed_token_and_ca_are_taken_at_the_next_dial(served: XdsControlPlane) -> None:
    served.faults.linger = 0.0
    served.faults.refuse_token = lambda token: "" if token == "new.token.now" else "token is of yesterday"
    peer = Peer(served)
    peer.ca = ""
    async with running(peer):
        await peer.until(lambda: peer.upstream.facts.refusal, "a refusal")
        assert peer.upstream.facts.refusal is StreamRefusal.AUTH
        assert "certificate" in peer.upstream.facts.last_error
        peer.ca = served.ca
        await peer.until(lambda: "yesterday" in peer.upstream.facts.last_error, "the token's refusal")
        assert peer.upstream.facts.refusal is StreamRefusal.AUTH
        peer.token = "new.token.now"
        await peer.until(lambda: peer.received, "a response")
        assert peer.upstream.facts.refusal is None


@on_both_loops
async def test_a_token_that_cannot_be_read_is_read_again(served: XdsControlPlane) -> None:
    peer = Peer(served)
    peer.failing = ControlPlaneRefused("the token file is empty")
    async with running(peer):
        await peer.until(lambda: peer.dials > 1, "a second dial")
        assert peer.upstream.facts.last_error == "the token file is empty"
        peer.failing = None
        await peer.until(lambda: peer.received, "a response")


@on_both_loops
async def test_what_nobody_expected_ends_an_attempt_and_not_the_relay(
    served: XdsControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(served)
    peer.failing = ValueError("nobody thought of this")
    async with running(peer):
        await peer.until(lambda: peer.dials > 2, "a third dial")
        assert peer.upstream.facts.last_error == "nobody thought of this"
        assert sum(bool(record.exc_info) for record in caplog.records) == 1
        peer.failing = None
        peer.addresses = (("no..name", 1), *peer.addresses)
        await peer.until(lambda: peer.received, "a response")


@on_both_loops
async def test_the_token_shows_in_no_log_and_no_text(served: XdsControlPlane, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    served.faults.refuse_token = lambda token: f"cannot take {token}"
    async with running(Peer(served)) as peer:
        await peer.until(lambda: peer.dials > 2, "three dials")
        assert "cannot take ***" in peer.upstream.facts.last_error
        shown = repr(await peer.dial()) + repr(peer.upstream.facts)
    assert "nobody-may-see" not in caplog.text + shown
    assert "Traceback" not in caplog.text


@on_both_loops
async def test_the_control_plane_goes_and_comes_back(served: XdsControlPlane, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    served.faults.linger = 0.0
    async with running(Peer(served)) as peer:
        await peer.until(lambda: peer.received, "a response")
        served.gone()
        await peer.until(lambda: peer.dials > 4, "attempts")
        assert peer.upstream.facts.refusal is StreamRefusal.UNREACHABLE
        assert peer.opened == peer.closed
        served.back()
        await peer.until(lambda: peer.opened == 2 and len(peer.received) > 1, "the stream again")
    lines = [record.message for record in caplog.records if record.name.startswith("kumadp")]
    assert len(lines) <= 4, lines
    assert "Traceback" not in caplog.text


@on_both_loops
async def test_a_held_stream_is_requested_until_it_is_free(served: XdsControlPlane) -> None:
    served.faults.one_stream = True
    served.faults.linger = 1.2
    node = encode_node(
        {"id": "default.web", "metadata": {"dataplane.resource": '{"type":"Dataplane","mesh":"default"}'}}
    )
    peer = Peer(served)
    peer.upstream_opened = lambda: peer.upstream.send(Request(CLUSTER, node=node).encode())  # type: ignore[method-assign]
    async with running(peer):
        await peer.until(lambda: peer.received, "a response")
        served.reset_streams()
        await peer.until(lambda: peer.upstream.facts.refusal is StreamRefusal.ACTIVE, "the refusal")
        await peer.until(lambda: len(peer.received) > 1, "the stream again")
    refused = served.journal.events(What.REFUSED)
    assert 2 <= len(refused) <= 5


@on_both_loops
async def test_closed_means_that_the_control_plane_sees_it_and_that_nothing_is_dialled(served: XdsControlPlane) -> None:
    served.faults.linger = 0.0
    async with running(Peer(served)) as peer:
        await peer.until(lambda: peer.received, "a response")
        peer.upstream.close("Envoy is gone")
        await peer.until(lambda: not served.streams(), "the end of the stream at the control plane")
        await peer.until_state(UpstreamState.HELD_CLOSED)
        dials = peer.dials
        await peer.until(lambda: peer.closed == 1, "closed")
        peer.upstream.reopen()
        await peer.until(lambda: len(peer.received) > 1, "the stream again")
        assert peer.dials == dials + 1


@on_both_loops
async def test_a_retry_does_not_wait_for_the_end_of_a_pause(
    served: XdsControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamBackoff, "wait", lambda *_args: 3600.0)
    peer = Peer(served)
    peer.failing = ControlPlaneRefused("no token")
    async with running(peer):
        await peer.until_state(UpstreamState.BACKOFF)
        peer.failing = None
        peer.upstream.retry()
        await peer.until(lambda: peer.received, "a response")
        dials = peer.dials
        # A stream that is open is not touched.
        peer.upstream.retry()
        assert peer.upstream.facts.state is UpstreamState.OPEN
    assert (peer.dials, peer.opened) == (dials, 1)


@on_both_loops
async def test_a_retry_during_an_attempt_is_followed_by_another_one_at_once(
    served: XdsControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt has read the former token; a retry while the stream is open is none of the next pause's business."""
    monkeypatch.setattr(StreamBackoff, "wait", lambda *_args: 3600.0)
    served.faults.linger = 0.0
    served.faults.refuse_token = lambda token: "" if token == "new.token.now" else "token is of yesterday"
    peer = Peer(served)
    read = peer.dial

    async def dial() -> Dial:
        former = await read()
        if peer.token == TOKEN:
            peer.token = "new.token.now"
            peer.upstream.retry()
        return former

    peer.upstream = UpstreamConnection(dial, peer, UpstreamOptions(time.monotonic, choice=peer.choice))
    async with running(peer):
        await peer.until(lambda: peer.received, "a response")
        assert peer.dials == 2
        peer.upstream.retry()
        served.reset_streams()
        await peer.until_state(UpstreamState.BACKOFF)
        assert peer.dials == 2


@on_both_loops
async def test_stopping_ends_the_stream_at_the_control_plane(served: XdsControlPlane) -> None:
    async with running(Peer(served)) as peer:
        await peer.until(lambda: peer.received, "a response")
    await peer.until(lambda: not served.streams(), "the end of the stream at the control plane", deadline=2.0)


@on_both_loops
async def test_goaway_is_an_end_like_any_other(served: XdsControlPlane) -> None:
    served.faults.linger = 0.0
    async with running(Peer(served)) as peer:
        await peer.until(lambda: peer.received, "a response")
        served.goaway()
        await peer.until(lambda: peer.opened == 2 and len(peer.received) > 1, "the stream again")


@on_both_loops
async def test_a_server_that_accepts_and_does_not_respond_is_disconnected(
    served: XdsControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kumadp.grpc.client.CONNECT_SECONDS", 0.5)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        peer = Peer(served)
        peer.addresses = (("127.0.0.1", mute.getsockname()[1]), *peer.addresses)
        async with running(peer):
            await peer.until(lambda: peer.received, "a response from the other address")


@on_both_loops
async def test_addresses_are_tried_in_turn_the_last_good_one_first(served: XdsControlPlane) -> None:
    served.faults.linger = 0.0
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        peer = Peer(served)
        peer.addresses = (("127.0.0.1", unused.getsockname()[1]), ("no-such-host.invalid", 1), *peer.addresses)
        async with running(peer):
            await peer.until(lambda: peer.received, "a response")
            assert peer.dials == 1
            served.reset_streams()
            await peer.until(lambda: len(peer.received) > 1, "the stream again")
            assert peer.upstream.facts.address.endswith(str(served.xds_port))


@on_both_loops
async def test_a_peer_that_does_not_answer_pings_is_disconnected(
    served: XdsControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kumadp.relay.upstream.PING", (0.2, 0.2))
    frozen = asyncio.Event()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while (data := await reader.read(1 << 16)) and not frozen.is_set():
                writer.write(data)
        await frozen.wait()
        await asyncio.sleep(30)

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_plane = await asyncio.open_connection("127.0.0.1", served.xds_port)
        try:
            await asyncio.gather(forward(reader, to_plane[1]), forward(to_plane[0], writer))
        finally:
            writer.close()
            to_plane[1].close()

    server = await asyncio.start_server(between, "127.0.0.1", 0)
    peer = Peer(served)
    peer.addresses = (("127.0.0.1", server.sockets[0].getsockname()[1]),)
    async with running(peer):
        await peer.until(lambda: peer.received, "a response")
        await asyncio.sleep(1.0)
        assert not peer.closed
        frozen.set()
        await peer.until(lambda: peer.closed, "the end of the stream")
    server.close()


@on_both_loops
async def test_a_further_stream_waits_for_the_first_and_uses_its_connection(served: XdsControlPlane) -> None:
    peer = Peer(served)
    further = asyncio.create_task(
        peer.upstream.call("/envoy.service.health.v3.HealthDiscoveryService/StreamHealthCheck")
    )
    async with running(peer):
        call = await further
        assert peer.received
        assert served.connections == 1
        call.close()


@on_both_loops
async def test_other_types_are_not_forgotten(served: XdsControlPlane) -> None:
    async with running(Peer(served)) as peer:
        await peer.until(lambda: peer.received, "a response")
        peer.upstream.send(Request(LISTENER).encode())
        await peer.until(lambda: any(one.type_url == LISTENER for one in peer.received), "listeners")
