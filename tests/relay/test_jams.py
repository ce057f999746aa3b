"""Clusters that Envoy has rejected without an answer: what its admin shows is enough to withdraw them."""

from __future__ import annotations

import pytest

from kumadp.relay.actions import QueryClusters
from kumadp.relay.cluster_report import VERSION, WARMING, ClusterReport, query_clusters
from kumadp.relay.jams import JAMMED, JAMMED_AFTER, LONGEST_PAUSE, QUERY_AFTER, STARVED_AFTER
from kumadp.relay.messages import encode_status
from kumadp.relay.state_machine import RelayStateMachine
from tests.relay.harness import CLUSTER, LISTENER, NODE, Bench, any_of, one

TEXT = "Error adding/updating cluster(s) bad: it is bad"


@pytest.fixture
def bench() -> Bench:
    """A LIVE Envoy that does not answer clusters with a bad one."""
    bench = Bench(RelayStateMachine(NODE, queries=True))
    bench.serving()
    bench.respond(CLUSTER, "2", one("1"), any_of("good"), any_of("bad"))
    bench.took_down()
    bench.do(bench.machine.tick(100.0))
    return bench


def report(bench: Bench, version: str, *warming: str, nonce: str = "") -> None:
    """Envoy's admin shows this."""
    nonce = nonce or bench.seen[1, CLUSTER].nonce
    bench.do(bench.machine.clusters_reported(1, nonce, ClusterReport(version, frozenset(warming))))


def sent(bench: Bench) -> list[str]:
    return sorted(bench.seen[1, CLUSTER].by_name)


def test_the_admin_is_queried_while_clusters_are_unanswered(bench: Bench) -> None:
    now, pause = 100.0, QUERY_AFTER
    query = QueryClusters(1, bench.seen[1, CLUSTER].nonce)
    for _ in range(9):
        now += pause
        assert bench.machine.next_tick() == now
        assert bench.machine.tick(now) == [query]
        pause = min(pause * 2, LONGEST_PAUSE)
    assert pause == LONGEST_PAUSE
    bench.ack(1, CLUSTER)
    assert bench.machine.next_tick() is None


def test_the_admin_is_queried_each_minute_for_days(bench: Bench) -> None:
    due = 0.0
    for _ in range(2000):
        due = bench.machine.next_tick() or 0.0
        assert len(bench.machine.tick(due)) == 1
    assert bench.machine.next_tick() == due + LONGEST_PAUSE


def test_it_is_not_queried_if_nobody_answers() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "2", one("1"), any_of("bad"))
    assert bench.machine.next_tick() is None


def test_what_envoy_has_rejected_is_withdrawn_and_it_sends_the_reason(bench: Bench) -> None:
    report(bench, "1", "bad")
    assert sent(bench) == ["good", "one"]
    # It is Envoy's word that counts, and that the control plane gets.
    assert bench.took_up() == []
    assert bench.machine.withheld() == []
    bench.nack(1, CLUSTER, TEXT)
    assert [(request.version, request.error) for request in bench.took_up()] == [("1", encode_status(13, TEXT))]
    assert [(each.name, each.reason) for each in bench.machine.withheld()] == [("bad", TEXT)]
    assert sent(bench) == ["good", "one"]
    bench.ack(1, CLUSTER)
    assert bench.took_up() == []


def test_what_only_warms_is_left_alone(bench: Bench) -> None:
    report(bench, "2", "good", "bad")
    assert len(bench.took_down()) == 0
    bench.ack(1, CLUSTER)
    assert [request.version for request in bench.took_up()] == ["2"]


def test_what_it_has_not_processed_yet_is_left_alone(bench: Bench) -> None:
    report(bench, "1")
    report(bench, "1", "one")
    assert bench.took_down() == []


@pytest.mark.parametrize("nonce", ["0", "999"])
def test_an_answer_about_another_response_is_ignored(bench: Bench, nonce: str) -> None:
    report(bench, "1", "bad", nonce=nonce)
    assert bench.took_down() == []


def test_an_answer_after_envoys_own_is_ignored(bench: Bench) -> None:
    bench.ack(1, CLUSTER)
    report(bench, "1", "bad")
    assert bench.took_down() == []


def test_an_answer_about_a_stream_that_has_ended_is_ignored(bench: Bench) -> None:
    bench.do(bench.machine.down_closed(1))
    report(bench, "1", "bad")
    assert bench.took_down() == []


def test_nothing_is_concluded_while_there_are_two_envoys(bench: Bench) -> None:
    """The admin is the newer one's."""
    bench.envoy(2, 1)
    report(bench, "1", "bad")
    assert bench.took_down() == []


def test_what_is_withdrawn_a_second_time_is_withheld(bench: Bench) -> None:
    report(bench, "1", "bad")
    # It has lost the reason, or it was that of another one.
    bench.ack(1, CLUSTER)
    assert sent(bench) == ["bad", "good", "one"]
    report(bench, "2+x", "bad")
    assert sent(bench) == ["good", "one"]
    assert [each.name for each in bench.machine.withheld()] == ["bad"]
    assert b"has not acknowledged" in bench.took_up()[-1].error
    bench.nack(1, CLUSTER, TEXT)
    bench.ack(1, CLUSTER)
    assert [each.reason for each in bench.machine.withheld()] == [JAMMED]


def test_what_warms_though_it_was_accepted_is_withheld_in_the_end(bench: Bench) -> None:
    """As one that was acknowledged when it was sent again: Envoy takes it for unchanged."""
    bench.ack(1, CLUSTER)
    bench.respond(CLUSTER, "3", one("1"), any_of("good"), any_of("bad"), any_of("new"))
    bench.respond(LISTENER, "2")
    bench.live(0)
    bench.took_down()
    bench.took_up()
    bench.do(bench.machine.tick(200.0))
    report(bench, "3", "bad", "new")
    bench.do(bench.machine.tick(200.0 + JAMMED_AFTER))
    bench.ack(1, LISTENER)
    bench.do(bench.machine.tick(220.0))
    report(bench, "3", "bad")
    bench.do(bench.machine.tick(220.0 + JAMMED_AFTER))
    # It has accepted the set, so it may be waiting for endpoints.
    assert sent(bench) == ["bad", "good", "new", "one"]
    bench.do(bench.machine.tick(220.0 + JAMMED_AFTER + STARVED_AFTER))
    assert sent(bench) == ["good", "new", "one"]


async def answers(*bodies: bytes | None) -> tuple[ClusterReport | None, list[str]]:
    paths: list[str] = []

    async def get(path: str) -> bytes | None:
        paths.append(path)
        return bodies[len(paths) - 1]

    return await query_clusters(get), paths


DUMP = b'{"configs": [{"@type": "x", "version_info": "2", "cluster": {"name": "bad", "type": "EDS"}}]}'
STATS = b'{"stats": [{"name": "cluster_manager.cds.version_text", "value": "1"}]}'


async def test_a_report_has_what_warms_and_the_version() -> None:
    assert await answers(DUMP, STATS) == (ClusterReport("1", frozenset({"bad"})), [WARMING, VERSION])
    assert await answers(b"{}", STATS) == (ClusterReport("1", frozenset()), [WARMING, VERSION])


@pytest.mark.parametrize(
    "bodies", [(None,), (DUMP, None), (b"", STATS), (DUMP, b"[]"), (DUMP, b'{"stats": []}'), (b'{"configs": 1}', STATS)]
)
async def test_without_a_usable_answer_there_is_no_report(bodies: tuple[bytes | None, ...]) -> None:
    found, _ = await answers(*bodies)
    assert found is None
