"""The form of xDS of the stream, against test control planes of all versions: chosen, changed on a sign, kept else."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from kumadp.bootstrap.generation import requires_delta
from kumadp.grpc.call import LARGEST
from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.messages import CLUSTER, ENDPOINTS, LISTENER, Request, Response
from kumadp.relay.present_dialect import PresentDialect
from kumadp.relay.protocol_choice import ProtocolChoice
from kumadp.relay.refusal import StreamBackoff
from kumadp.relay.snapshot import RelaySnapshot, TypeSnapshot
from kumadp.relay.upstream import Dial, UpstreamConnection, UpstreamOptions, UpstreamState
from tests.relay.upstream_owner import NODE, UpstreamOwner, running
from tests.support.xds.envoy import bootstrap_request, fetch_bootstrap
from tests.support.xds.journal import What
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kumadp.grpc.call import Oversized

SOTW, DELTA = XdsProtocol.SOTW, XdsProtocol.DELTA
TYPES = (CLUSTER, LISTENER)
RIGHT = {"2.8": SOTW, "2.13": SOTW, "2.14": SOTW, "3.0": DELTA, "3.0 unimplemented": DELTA}


@pytest.fixture
def plane(request: pytest.FixtureRequest) -> Iterator[XdsControlPlane]:
    with XdsControlPlane(version=getattr(request, "param", "2.14")) as plane:
        plane.faults.linger = 0.0
        plane.mesh("default.web").outbound(15001, "backend", ("127.0.0.1", 8080))
        yield plane


class Client(UpstreamOwner):
    """Requests clusters, listeners and the endpoints of clusters, and accepts all that comes."""

    def __init__(self, plane: XdsControlPlane, folder: Path, first: XdsProtocol, *, stale: bool = False) -> None:
        self.plane, self.folder = plane, folder
        self.choice = ProtocolChoice(first, self.query, stale=stale)
        self.dialect = PresentDialect(self.memory, LARGEST)
        self.accepted: dict[str, Response] = {}
        self.responses = 0
        self.streams: list[XdsProtocol] = []
        self.queries = 0
        self.upstream = UpstreamConnection(self.dial, self, UpstreamOptions(time.monotonic, choice=self.choice))

    async def query(self) -> XdsProtocol | None:
        self.queries += 1
        request = bootstrap_request(self.plane, "web", {"networking": {}}, self.folder)
        try:
            tree = await asyncio.to_thread(fetch_bootstrap, self.plane, request)
        except OSError:
            return None
        return DELTA if requires_delta(tree) else SOTW

    def memory(self) -> RelaySnapshot:
        return RelaySnapshot(
            tuple(TypeSnapshot(type_url, accepted=response.raw) for type_url, response in self.accepted.items())
        )

    async def dial(self) -> Dial:
        context = ssl.create_default_context(cadata=self.plane.ca)
        return Dial((("localhost", self.plane.xds_port),), context, "localhost", self.plane.token())

    async def upstream_opening(self, protocol: XdsProtocol) -> str:
        self.streams.append(protocol)
        return await self.dialect.prepare(protocol)

    def send(self, request: Request) -> None:
        for data in self.dialect.encode(request)[0]:
            self.upstream.send(data)

    def upstream_opened(self) -> None:
        self.dialect.begin()
        for type_url in TYPES:
            self.send(Request(type_url, node=NODE))

    async def upstream_message(self, data: bytes) -> None:
        arrival = await self.dialect.read(data)
        self.responses += 1
        for answer in self.dialect.take(arrival):
            self.upstream.send(answer)
        if arrival.response is not None:
            response = self.accepted[arrival.outline.type_url] = arrival.response
            names = ("backend",) if response.type_url == ENDPOINTS else ()
            self.send(Request(response.type_url, response.version, names=names, nonce=response.nonce))
            if response.type_url == CLUSTER and ENDPOINTS not in self.accepted:
                self.send(Request(ENDPOINTS, names=("backend",)))

    def upstream_oversized(self, message: Oversized) -> bool:
        raise AssertionError(message.size)

    def upstream_closed(self) -> None:
        """The next stream begins with subscriptions."""

    async def served(self, *types: str) -> None:
        await self.until(lambda: self.accepted.keys() >= set(types or TYPES), "all types")


@pytest.mark.parametrize(("plane", "right"), RIGHT.items(), indirect=["plane"], ids=RIGHT)
async def test_with_the_right_one_there_is_one_stream_and_no_query(
    plane: XdsControlPlane, right: XdsProtocol, tmp_path: Path
) -> None:
    async with running(Client(plane, tmp_path, right)) as client:
        await client.served(CLUSTER, ENDPOINTS, LISTENER)
        assert client.upstream.protocol is right
    assert (client.streams, client.queries) == ([right], 0)


@pytest.mark.parametrize("plane", ["2.8", "3.0"], indirect=True)
async def test_a_silent_stream_of_the_wrong_one_is_left_after_a_query(
    plane: XdsControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kumadp.relay.first_response.SILENT_AFTER", 0.2)
    caplog.set_level(logging.INFO)
    right = RIGHT[plane.version]
    wrong = DELTA if right is SOTW else SOTW
    async with running(Client(plane, tmp_path, wrong)) as client:
        await client.served()
        assert client.upstream.protocol is right
    assert (client.streams, client.queries) == ([wrong, right], 1)
    assert f"does not serve {wrong} xDS: changing to {right}" in caplog.text


async def test_a_silent_control_plane_that_names_the_same_is_waited_for(
    plane: XdsControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kumadp.relay.first_response.SILENT_AFTER", 0.05)
    plane.faults.silent = True
    async with running(Client(plane, tmp_path, SOTW)) as client:
        await client.until(lambda: client.queries >= 3, "three queries")
        assert client.streams == [SOTW]
        plane.faults.silent = False
        plane.wake()
        await client.served()
    assert client.streams == [SOTW]


@pytest.mark.parametrize("plane", ["3.0 unimplemented"], indirect=True)
async def test_unimplemented_changes_at_once_and_is_remembered(plane: XdsControlPlane, tmp_path: Path) -> None:
    async with running(Client(plane, tmp_path, SOTW)) as client:
        await client.served()
        assert (client.streams, client.queries) == ([SOTW, DELTA], 0)
        plane.reset_streams()
        await client.until(lambda: len(client.streams) == 3, "the next stream")
        await client.until(lambda: client.upstream.facts.state is UpstreamState.OPEN, "an answer")
    assert client.streams == [SOTW, DELTA, DELTA]


@pytest.mark.parametrize(
    ("plane", "after"),
    [("2.14", "3.0"), ("3.0", "2.14"), ("2.8", "3.0"), ("2.13", "2.14"), ("2.14", "3.0 unimplemented")],
    indirect=["plane"],
)
async def test_an_upgrade_in_flight_changes_the_form_with_the_next_stream(
    plane: XdsControlPlane, after: str, tmp_path: Path
) -> None:
    before = RIGHT[plane.version]
    async with running(Client(plane, tmp_path, before)) as client:
        await client.served(CLUSTER, ENDPOINTS, LISTENER)
        responses = client.responses
        await asyncio.to_thread(plane.upgrade, after)
        await client.until(lambda: client.responses > responses + 1, "responses of the other version")
        assert client.upstream.protocol is RIGHT[after]
    # While it was away nothing was guessed.
    assert client.streams == [before, RIGHT[after]]


async def test_a_bootstrap_from_disk_is_checked_before_the_first_stream(plane: XdsControlPlane, tmp_path: Path) -> None:
    plane.version = "3.0"
    async with running(Client(plane, tmp_path, SOTW, stale=True)) as client:
        await client.served()
    assert (client.streams, client.queries) == ([DELTA], 1)


async def test_a_control_plane_that_is_away_is_not_queried(plane: XdsControlPlane, tmp_path: Path) -> None:
    async with running(Client(plane, tmp_path, SOTW)) as client:
        await client.served()
        plane.gone()
        await client.until(lambda: client.upstream.facts.state is UpstreamState.BACKOFF, "the end")
        queries, since = client.queries, client.upstream.facts.since
        await client.until(lambda: client.upstream.facts.since != since, "another attempt")
        assert (client.queries, client.streams) == (queries, [SOTW])
        plane.back()
        await client.until(lambda: len(client.streams) == 2, "the stream again")
        assert client.queries == 1


async def test_a_bootstrap_that_is_refused_keeps_the_last_one(plane: XdsControlPlane, tmp_path: Path) -> None:
    async with running(Client(plane, tmp_path, SOTW)) as client:
        await client.served()
        responses = client.responses

        async def refused() -> XdsProtocol | None:
            client.queries += 1
            return None

        client.choice._query = refused
        plane.reset_streams()
        await client.until(lambda: client.responses > responses, "responses on a new stream")
    assert (client.streams, client.queries) == ([SOTW, SOTW], 1)


@pytest.mark.parametrize("plane", ["2.13", "2.14", "3.0"], indirect=True)
async def test_a_reconnect_in_delta_sends_nothing_again_but_endpoints(plane: XdsControlPlane, tmp_path: Path) -> None:
    async with running(Client(plane, tmp_path, DELTA)) as client:
        client.choice._query = no_query
        await client.served(CLUSTER, ENDPOINTS, LISTENER)
        accepted, responses = dict(client.accepted), client.responses
        plane.reset_streams()
        await client.until(lambda: client.responses >= responses + 2, "answers to clusters and listeners")
        assert client.accepted == accepted
        # Each was answered: the next change comes.
        plane.mesh("default.web").outbound(15002, "other", ("127.0.0.1", 8081))
        await client.until(lambda: client.accepted[LISTENER] != accepted[LISTENER], "the next change")
    assert plane.journal.events(What.REFUSED) == []


async def no_query() -> XdsProtocol | None:
    return DELTA


@pytest.mark.parametrize("hurried", [False, True], ids=["in time", "at once after a new token"])
async def test_a_silent_stream_without_a_bootstrap_is_checked_again_soon(
    plane: XdsControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: bool
) -> None:
    """As after an upgrade whose control plane rejects the token at first: bootstraps and delta, not the silence."""
    monkeypatch.setattr("kumadp.relay.first_response.UNCONFIRMED_AFTER", 600.0 if hurried else 0.05)
    async with running(Client(plane, tmp_path, SOTW)) as client:
        await client.served()
        query, refusing = client.query, True

        async def refused() -> XdsProtocol | None:
            client.queries += 1
            return None if refusing else await query()

        client.choice._query = refused
        await asyncio.to_thread(plane.upgrade, "3.0")
        await client.until(lambda: len(client.streams) == 2, "a stream of the former protocol")
        refusing = False
        if hurried:
            await client.until(lambda: client.queries == 1, "the query that was refused")
            responses = client.responses
            client.upstream.retry()
            await client.until(lambda: client.responses > responses, "a response")
        await client.until(lambda: client.upstream.facts.state is UpstreamState.OPEN, "the stream of delta")
    assert client.streams == [SOTW, SOTW, DELTA]


async def test_a_token_that_is_renewed_while_the_wrong_stream_is_silent_is_used_at_once(
    plane: XdsControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade: the stream that waits has read the former token, and so would the one that replaces it."""
    async with running(Client(plane, tmp_path, SOTW)) as client:
        await client.served()
        query, taken = client.query, plane.token()
        monkeypatch.setattr(plane, "token", lambda *_args: "former")
        plane.faults.refuse_token = lambda token: "" if token == taken else "token is of yesterday"

        async def refused() -> XdsProtocol | None:
            return None

        client.choice._query = refused
        await asyncio.to_thread(plane.upgrade, "3.0")
        await client.until(lambda: len(client.streams) == 2, "a stream of the former protocol")
        monkeypatch.setattr(StreamBackoff, "wait", lambda *_args: 3600.0)
        monkeypatch.setattr(plane, "token", lambda *_args: taken)
        client.choice._query = query
        responses = client.responses
        client.upstream.retry()
        await client.until(lambda: client.responses > responses, "a response")
    assert client.streams == [SOTW, SOTW, DELTA, DELTA]
