"""A listener that Envoy rejects because of its host is retried; one that is wrong is not."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from kumadp.relay.messages import Request
from kumadp.relay.retries import WAITS
from tests.relay.harness import CLUSTER, LISTENER, Bench, any_of, one
from tests.support.daemon import get
from tests.support.poll import poll
from tests.support.relay_stage import NODE, stage

if TYPE_CHECKING:
    from pathlib import Path

REJECTED = "listener_manager.lds.update_rejected"
TAKEN = "Error adding/updating listener(s) in: cannot bind '10.0.0.1:80': Address already in use"


@pytest.fixture
def bench() -> Bench:
    """A LIVE Envoy that has rejected a listener."""
    bench = Bench()
    bench.serving()
    bench.respond(LISTENER, "2", one("1"), any_of("in"))
    bench.nack(1, LISTENER, TAKEN)
    bench.ack(1, LISTENER)
    bench.took_up()
    bench.took_down()
    return bench


def retry_at(bench: Bench) -> float | None:
    (withheld,) = bench.machine.withheld()
    return bench.machine.retries.at((withheld.name, withheld.digest))


def test_it_is_retried_ever_less_often_and_then_each_minute(bench: Bench) -> None:
    now = 100.0
    for wait in (*WAITS, WAITS[-1]):
        bench.do(bench.machine.tick(now))
        assert bench.machine.next_tick() == retry_at(bench) == now + wait
        now += wait
        bench.do(bench.machine.tick(now - 0.1))
        assert bench.took_down() == []
        bench.do(bench.machine.tick(now))
        assert bench.took_down() == [(1, LISTENER, "2")]
        assert retry_at(bench) is bench.machine.next_tick() is None
        bench.nack(1, LISTENER, TAKEN)
        assert sorted(bench.seen[1, LISTENER].by_name) == ["one"]
        bench.ack(1, LISTENER)
        bench.took_down()
    # The control plane knows already.
    assert bench.took_up() == []


def test_one_that_is_accepted_is_no_longer_withheld(bench: Bench) -> None:
    bench.do(bench.machine.tick(100.0))
    bench.do(bench.machine.tick(100.0 + WAITS[0]))
    bench.ack(1, LISTENER)
    assert bench.machine.withheld() == []
    assert bench.machine.next_tick() is None
    assert bench.machine.snapshot().types[1].latest is None
    # The control plane has nothing else to send, and would count it as rejected.
    assert bench.took_up() == [Request(LISTENER, "2", nonce="3")]
    bench.do(bench.machine.envoy_live(0, now=0.0))
    assert bench.took_up() == []


def test_an_envoy_whose_stream_is_new_is_given_it_too(bench: Bench) -> None:
    bench.do(bench.machine.down_closed(1))
    assert bench.machine.next_tick() is None
    bench.envoy(2, 0)
    bench.versions[2, LISTENER] = bench.versions[2, CLUSTER] = "1"
    bench.request(2, CLUSTER)
    bench.ack(2, CLUSTER)
    bench.request(2, LISTENER)
    bench.ack(2, LISTENER)
    bench.took_down()
    bench.do(bench.machine.tick(100.0))
    bench.do(bench.machine.tick(100.0 + WAITS[0]))
    assert bench.took_down() == [(2, LISTENER, "2")]


@pytest.mark.parametrize("content", [(), (any_of("in", "other"),)])
def test_one_that_is_gone_or_changed_is_not_retried(bench: Bench, content: tuple[bytes, ...]) -> None:
    bench.do(bench.machine.tick(100.0))
    bench.respond(LISTENER, "3", one("1"), *content)
    bench.ack(1, LISTENER)
    assert bench.machine.next_tick() is None


def test_one_that_is_wrong_in_itself_is_not_retried() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(LISTENER, "2", one("1"), any_of("in"))
    bench.nack(1, LISTENER, "Error adding/updating listener(s) in: no filter chains")
    bench.ack(1, LISTENER)
    assert bench.machine.next_tick() is None


@pytest.mark.process
@pytest.mark.parametrize("version", ["2.14", "3.0"])
def test_a_port_that_was_taken_is_served_by_the_same_envoy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr("kumadp.relay.retries.WAITS", (0.2, 0.5))
    with stage(tmp_path, version=version) as at:
        at.plane.faults.nack_delay = 0.2
        relay = at.relay()
        envoy = at.envoy(relay)
        envoy.wait_live()
        at.wait_traffic()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            at.plane.mesh(NODE).outbound(port, "late-service", ("127.0.0.1", at.app.port))
            poll(lambda: any(each["retry_at"] for each in relay.status["withheld"]), what="a retry in the status")
            before = envoy.stats(REJECTED)[REJECTED]
            poll(lambda: envoy.stats(REJECTED)[REJECTED] > before + 1, what="retries that are rejected")
            assert at.serves()
        poll(lambda: get(port) == (200, "backend"), what="traffic through the listener")
        poll(lambda: relay.status["withheld_count"] == 0, what="nothing withheld")
