"""Listeners and routes come after the clusters that they lead to."""

from __future__ import annotations

from math import inf

import pytest

from kumadp.relay.cluster_order import LONGEST_HOLD
from kumadp.relay.messages import ROUTES
from tests.relay.harness import CLUSTER, ENDPOINTS, LISTENER, Bench, any_of


@pytest.fixture
def bench() -> Bench:
    """An Envoy that serves, with clusters in flight and listeners that came right after them."""
    bench = Bench()
    bench.serving()
    bench.request(1, ROUTES, "route")
    bench.respond(ROUTES, "v1", any_of("route"))
    bench.ack(1, ROUTES)
    bench.took_down()
    bench.respond(CLUSTER, "v2")
    bench.respond(LISTENER, "v2")
    return bench


def test_listeners_wait_until_clusters_are_acknowledged(bench: Bench) -> None:
    bench.respond(ROUTES, "v2", any_of("route", "other"))
    assert bench.took_down() == [(1, CLUSTER, "v2")]
    bench.ack(1, CLUSTER)
    assert [(type_url, version) for _, type_url, version in bench.took_down()] == [(LISTENER, "v2"), (ROUTES, "v2")]
    assert bench.machine.next_tick() is None


def test_after_rejected_clusters_listeners_wait_for_those_that_come_in_their_place(bench: Bench) -> None:
    bench.took_down()
    bench.nack(1, CLUSTER, "no")
    assert bench.took_down() == [(1, CLUSTER, "1")]
    bench.ack(1, CLUSTER)
    assert bench.took_down() == [(1, LISTENER, "v2")]


def test_endpoints_do_not_wait_as_clusters_warm_until_they_have_them(bench: Bench) -> None:
    bench.took_down()
    bench.request(1, ENDPOINTS, "a")
    bench.respond(ENDPOINTS, "v1", any_of("a"))
    assert [type_url for _, type_url, _ in bench.took_down()] == [ENDPOINTS]


def test_a_cluster_that_never_warms_does_not_stop_listeners(bench: Bench) -> None:
    bench.took_down()
    assert bench.machine.next_tick() == -inf
    bench.do(bench.machine.tick(100.0))
    assert bench.machine.next_tick() == 100.0 + LONGEST_HOLD
    assert bench.took_down() == []
    bench.do(bench.machine.tick(100.0 + LONGEST_HOLD))
    assert bench.took_down() == [(1, LISTENER, "v2")]
    assert bench.machine.next_tick() is None
    # The next clusters hold them again.
    bench.ack(1, CLUSTER)
    bench.ack(1, LISTENER)
    bench.respond(CLUSTER, "v3")
    bench.respond(LISTENER, "v3")
    assert bench.took_down() == [(1, CLUSTER, "v3")]


def test_nothing_is_due_once_the_stream_has_ended(bench: Bench) -> None:
    bench.do(bench.machine.down_closed(1))
    assert bench.machine.next_tick() is None
