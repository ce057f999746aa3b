"""An Envoy whose answer to clusters is lost with its stream: sent again unchanged, bad ones would be acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.grpc.call import StreamEnded
from kumadp.relay.messages import Request, encode_status
from kumadp.relay.relay import Relay
from kumadp.relay.state_machine import RelayStateMachine
from tests.relay.harness import CLUSTER, LISTENER, NODE, Bench, any_of, one
from tests.relay.test_relay_rejections import WARMING, add_bad_cluster
from tests.support.poll import poll
from tests.support.relay_stage import NODE as OURS
from tests.support.relay_stage import stage

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
    assert bench.took_down() == [(2, CLUSTER, "2"), (2, LISTENER, "1")]
    assert bench.took_up() == []
    bench.nack(2, CLUSTER, TEXT)
    assert names_of(bench, 2, CLUSTER) == ["good", "one"]
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
    monkeypatch.setattr("kumadp.relay.jams.JAMMED_AFTER", 1.0)
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
