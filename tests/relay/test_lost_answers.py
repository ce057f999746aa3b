"""An Envoy whose answer to clusters is lost with its stream: sent again unchanged, bad ones would be acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.grpc.call import StreamEnded
from kumadp.relay.jams import REQUESTED_WITHIN
from kumadp.relay.messages import Request, encode_response, encode_status
from kumadp.relay.relay import Relay
from kumadp.relay.state_machine import RelayStateMachine
from tests.relay.harness import CLUSTER, ENDPOINTS, LISTENER, NODE, Bench, any_of, one
from tests.relay.test_relay_rejections import WARMING, add_bad_cluster
from tests.support.daemon import get_at
from tests.support.poll import poll
from tests.support.relay_stage import NODE as OURS
from tests.support.relay_stage import stage
from tests.support.xds.resources import eds_cluster

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "Error adding/updating cluster(s) bad: it is bad"


def names_of(bench: Bench, stream: int, type_url: str) -> list[str]:
    return sorted(bench.seen[stream, type_url].by_name)


def interrupted(*, live: bool) -> tuple[Bench, str]:
    """An Envoy that ran version 1, and got others of which one is bad; its stream ended before it answered."""
    bench = Bench()
    if live:
        bench.serving()
    else:
        bench.connect()
        bench.envoy(1, 0)
        bench.respond(CLUSTER, "1")
        bench.request(1, CLUSTER)
        bench.ack(1, CLUSTER)
        bench.respond(LISTENER, "1")
    nonce = bench.respond(CLUSTER, "2", one("1"), any_of("good"), any_of("bad"))
    bench.do(bench.machine.down_closed(1))
    bench.took_up()
    bench.took_down()
    return bench, nonce


@pytest.mark.parametrize("live", [True, False])
def test_what_it_had_before_is_sent_first(live: bool) -> None:
    bench, nonce = interrupted(live=live)
    bench.envoy(2, 0)
    bench.versions[2, CLUSTER] = "1"
    bench.request(2, CLUSTER)
    bench.request(2, LISTENER)
    # Listeners can lead to clusters that Envoy does not have for this moment.
    assert bench.took_down() == [(2, CLUSTER, "1")]
    bench.ack(2, CLUSTER)
    assert bench.took_down() == [(2, CLUSTER, "2")]
    assert bench.took_up() == []
    bench.nack(2, CLUSTER, TEXT)
    assert names_of(bench, 2, CLUSTER) == ["good", "one"]
    assert bench.took_down()[-1] == (2, LISTENER, "1")
    bench.ack(2, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "1", nonce=nonce, error=encode_status(13, TEXT))]


def test_so_it_is_after_a_second_interruption() -> None:
    bench, _ = interrupted(live=True)
    bench.envoy(2, 0)
    bench.do(bench.machine.down_closed(2))
    bench.envoy(3, 0)
    bench.versions[3, CLUSTER] = "1"
    bench.request(3, CLUSTER)
    assert bench.took_down() == [(3, CLUSTER, "1")]


def test_so_it_is_if_the_end_of_the_former_stream_is_noticed_late() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "2", one("1"), any_of("bad"))
    bench.took_down()
    bench.envoy(2, 0)
    bench.versions[2, CLUSTER] = "1"
    bench.request(2, CLUSTER)
    assert bench.took_down() == [(2, CLUSTER, "1")]


def test_so_it_is_after_a_restart_of_the_relay() -> None:
    former, _ = interrupted(live=True)
    bench = Bench(RelayStateMachine(NODE, snapshot=former.machine.snapshot()))
    bench.live(0)
    bench.envoy(1, 0)
    bench.versions[1, CLUSTER] = "1"
    bench.request(1, CLUSTER)
    assert bench.took_down() == [(1, CLUSTER, "1")]
    bench.ack(1, CLUSTER)
    assert bench.took_down() == [(1, CLUSTER, "2")]


def test_nothing_is_sent_twice_if_nothing_was_unanswered() -> None:
    bench = Bench()
    bench.serving()
    bench.do(bench.machine.down_closed(1))
    bench.respond(CLUSTER, "2", one("1"), any_of("good"))
    bench.envoy(2, 0)
    bench.versions[2, CLUSTER] = "1"
    bench.request(2, CLUSTER)
    bench.request(2, LISTENER)
    assert bench.took_down() == [(2, CLUSTER, "2"), (2, LISTENER, "1")]


def unanswered(bench: Bench, *, stream: int = 1, epoch: int = 0) -> str:
    """A new Envoy got clusters of which one is bad; its stream ended before it answered."""
    bench.envoy(stream, epoch)
    bench.request(stream, CLUSTER)
    nonce = bench.respond(CLUSTER, "2", any_of("good"), any_of("bad"))
    bench.do(bench.machine.down_closed(stream))
    bench.took_down()
    return nonce


def test_an_envoy_that_has_accepted_nothing_gets_nothing_first() -> None:
    bench = Bench()
    bench.connect()
    nonce = unanswered(bench)
    bench.respond(LISTENER, "1")
    bench.envoy(2, 0)
    bench.request(2, CLUSTER)
    bench.request(2, LISTENER)
    bench.took_up()
    assert len(bench.took_down()) == 1
    assert names_of(bench, 2, CLUSTER) == []
    bench.ack(2, CLUSTER)
    # Listeners wait until it has answered these, as they would at a start.
    assert bench.took_down() == [(2, CLUSTER, "2")]
    bench.nack(2, CLUSTER, TEXT)
    assert names_of(bench, 2, CLUSTER) == ["good"]
    bench.ack(2, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, nonce=nonce, error=encode_status(13, TEXT))]
    assert [each.name for each in bench.machine.withheld()] == ["bad"]


def test_so_does_one_that_had_accepted_nothing_but_an_empty_set() -> None:
    bench = Bench()
    bench.connect()
    bench.envoy(1, 0)
    bench.request(1, CLUSTER)
    bench.do(bench.machine.upstream_message(encode_response(CLUSTER, "1", (), "1")))
    bench.ack(1, CLUSTER)
    bench.respond(CLUSTER, "2", any_of("good"), any_of("bad"))
    bench.do(bench.machine.down_closed(1))
    bench.envoy(2, 0)
    bench.versions[2, CLUSTER] = "1"
    bench.request(2, CLUSTER)
    assert names_of(bench, 2, CLUSTER) == []
    bench.ack(2, CLUSTER)
    assert names_of(bench, 2, CLUSTER) == ["bad", "good"]


def test_what_another_envoy_accepts_is_doubted_too() -> None:
    """Another version of Envoy may reject it."""
    bench = Bench()
    bench.serving()
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    bench.do(bench.machine.down_closed(2))
    bench.took_down()
    bench.envoy(3, 1)
    bench.request(3, CLUSTER)
    assert names_of(bench, 3, CLUSTER) == []
    bench.ack(3, CLUSTER)
    assert names_of(bench, 3, CLUSTER) == ["one"]
    bench.ack(3, CLUSTER)
    assert bench.notifications == []


def test_nothing_is_withdrawn_if_only_an_acknowledgement_was_lost() -> None:
    bench, _ = interrupted(live=True)
    bench.envoy(2, 0)
    bench.versions[2, CLUSTER] = "2"
    bench.request(2, CLUSTER)
    assert names_of(bench, 2, CLUSTER) == ["bad", "good", "one"]


def test_clusters_that_envoy_does_not_request_are_sent() -> None:
    """As it does not while some warm (1.40): else it would get none until its end."""
    bench, nonce = interrupted(live=True)
    bench.envoy(2, 0)
    bench.request(2, LISTENER)
    bench.took_down()
    bench.do(bench.machine.tick(10.0))
    bench.do(bench.machine.tick(10.0 + REQUESTED_WITHIN - 0.1))
    assert bench.took_down() == []
    bench.do(bench.machine.tick(10.0 + REQUESTED_WITHIN))
    assert bench.took_down() == [(2, CLUSTER, "1")]
    bench.names[2, CLUSTER] = ()
    bench.nack(2, CLUSTER, TEXT)
    bench.ack(2, CLUSTER)
    assert names_of(bench, 2, CLUSTER) == ["good", "one"]
    bench.ack(2, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "1", nonce=nonce, error=encode_status(13, TEXT))]


@pytest.mark.parametrize("types", [(CLUSTER, LISTENER), (LISTENER, CLUSTER)])
def test_nothing_is_sent_unrequested_to_an_envoy_that_requests_clusters(types: tuple[str, ...]) -> None:
    bench = Bench()
    bench.serving()
    bench.do(bench.machine.down_closed(1))
    bench.envoy(2, 0)
    for type_url in types:
        bench.versions[2, type_url] = "1"
        bench.request(2, type_url)
        bench.ack(2, type_url)
    bench.took_down()
    bench.do(bench.machine.tick(10.0))
    bench.do(bench.machine.tick(20.0))
    assert bench.took_down() == []
    assert bench.machine.next_tick() is None


def test_a_new_envoy_is_waited_for() -> None:
    bench = Bench()
    bench.connect()
    bench.respond(CLUSTER, "1")
    bench.envoy(1, 0)
    bench.request(1, LISTENER)
    assert bench.machine.next_tick() is None


def test_a_late_rejection_of_what_was_replaced_is_no_rejection_of_what_replaced_it() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "2", one("1"), any_of("new", "bad"))
    bench.do(bench.machine.down_closed(1))
    bench.envoy(2, 0)
    bench.versions[2, CLUSTER] = "1"
    bench.respond(CLUSTER, "3", one("1"), any_of("new", "good"))
    bench.request(2, CLUSTER)
    bench.took_up()
    bench.took_down()
    bench.nack(2, CLUSTER, "Error adding/updating cluster(s) new: it is bad")
    assert bench.took_down() == [(2, CLUSTER, "3")]
    bench.ack(2, CLUSTER)
    assert [(request.version, request.error) for request in bench.took_up()] == [("3", b"")]
    assert bench.machine.withheld() == []


@pytest.mark.process
@pytest.mark.parametrize("version", ["2.14", "3.0"])
@pytest.mark.parametrize("live", [True, False])
def test_an_envoy_whose_rejection_is_lost_warms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, live: bool
) -> None:
    lost: list[bytes] = []
    read = Relay.down_message

    def read_or_lose(relay: Relay, stream: int, data: bytes) -> None:
        if Request.parse(data).error and not lost:
            lost.append(data)
            raise StreamEnded(None, "lost")
        read(relay, stream, data)

    monkeypatch.setattr(Relay, "down_message", read_or_lose)
    with stage(tmp_path, version=version) as at:
        at.plane.faults.linger = at.plane.faults.nack_delay = 0.2
        at.suit_all()
        relay = at.relay()
        envoy = at.envoy(relay) if live else None
        if envoy is not None:
            envoy.wait_live()
            at.wait_traffic()
        poll(lambda: at.plane.registered == [OURS], what="the stream")
        add_bad_cluster(at, at.app.port)
        envoy = envoy or at.envoy(relay)
        poll(lambda: lost, what="a rejection that is lost")
        poll(lambda: at.plane.rejected(OURS), what="the rejection at the control plane")
        envoy.wait_live()
        poll(lambda: envoy.stats(WARMING)[WARMING] == 0, what="no cluster that warms")
        at.wait_traffic()
        poll(
            lambda: [each["name"] for each in relay.status["withheld"]] == ["second"], what="the bad one in the status"
        )


@pytest.mark.process
@pytest.mark.parametrize("version", ["2.14", "3.0"])
def test_an_envoy_that_requests_no_clusters_on_a_new_stream_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """It requests none while one warms, so for ever if that is a bad one."""
    broken: list[bytes] = []
    requested: list[tuple[int, str]] = []
    read = Relay.down_message

    def read_or_break(relay: Relay, stream: int, data: bytes) -> None:
        request = Request.parse(data)
        if request.type_url == ENDPOINTS and "third" in request.names and request.nonce and not broken:
            broken.append(data)
            raise StreamEnded(None, "broken")
        requested.append((stream, request.type_url))
        read(relay, stream, data)

    monkeypatch.setattr(Relay, "down_message", read_or_break)
    with stage(tmp_path, version=version) as at:
        at.plane.faults.linger = at.plane.faults.nack_delay = 0.2
        at.suit_all()
        relay = at.relay(queries=False)
        envoy = at.envoy(relay)
        envoy.wait_live()
        at.wait_traffic()
        add_bad_cluster(at, at.app.port)
        poll(lambda: broken, what="a broken stream")
        poll(lambda: at.plane.rejected(OURS), what="the rejection at the control plane")
        assert next(type_url for stream, type_url in requested if stream == 2) != CLUSTER
        poll(lambda: envoy.stats(WARMING)[WARMING] == 0, what="no cluster that warms")
        assert [each["name"] for each in relay.status["withheld"]] == ["second"]
        at.plane.mesh(OURS).put(CLUSTER, eds_cluster("later", None, http2=True))
        poll(lambda: "later::" in get_at(envoy.admin, "/clusters")[1], what="a later cluster")
