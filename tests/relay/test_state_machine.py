"""The relay's state machine, rule by rule."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from kumadp.relay.actions import ResponseAccepted, ResponseRejected
from kumadp.relay.cluster_order import LONGEST_HOLD
from kumadp.relay.jams import JAMMED_AFTER, STARVED_AFTER
from kumadp.relay.last_good import without_reasons
from kumadp.relay.messages import Outline, Request, Response, encode_response, encode_status
from kumadp.relay.protobuf import field_bytes
from kumadp.relay.snapshot import RelaySnapshot
from kumadp.relay.state_machine import RelayStateMachine
from kumadp.relay.verdicts import EARLIER
from tests.relay.harness import CLUSTER, ENDPOINTS, LISTENER, NODE, REFUSED, SECRET, Bench, any_of, contents, one


def eds_cluster(name: str, body: str) -> bytes:
    """Encode a cluster whose endpoints Envoy requests by its name."""
    return field_bytes(2, field_bytes(1, name.encode()) + field_bytes(3, b"") + field_bytes(9, body.encode()))


# Upward.


def test_a_dropped_response_is_rejected_once_and_envoys_keep_the_previous_one() -> None:
    bench = Bench()
    bench.serving()
    bench.do(bench.machine.upstream_refused(Outline(CLUSTER, "v2", "77"), "too large"))
    refusal = encode_status(8, "too large")
    assert bench.took_up() == [Request(CLUSTER, "1", nonce="77", error=refusal)]
    assert bench.took_down() == []
    assert bench.notifications == [ResponseRejected(CLUSTER, "v2", "too large", by_guard=True)]
    assert next(view.rejections for view in bench.machine.types() if view.type_url == CLUSTER) == 1
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    assert bench.took_down() == [(2, CLUSTER, "1")]
    nonce = bench.respond(CLUSTER, "v3")
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v3", nonce=nonce)]


def test_a_dropped_response_stays_rejected_while_envoys_accept_the_previous_one() -> None:
    bench = Bench()
    bench.serving()
    bench.do(bench.machine.upstream_refused(Outline(CLUSTER, "v2", "77"), "too large"))
    bench.took_up()
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    bench.ack(2, CLUSTER)
    bench.live(1)
    assert bench.took_up() == []


def test_an_unrequested_dropped_response_is_not_answered() -> None:
    bench = Bench()
    bench.serving()
    bench.do(bench.machine.upstream_refused(Outline(SECRET, "v2", "77"), "too large"))
    assert bench.took_up() == []
    assert bench.notifications == []


def test_clusters_and_listeners_are_requested_before_an_envoy_runs_and_nothing_is_answered() -> None:
    bench = Bench()
    bench.connect()
    assert bench.took_up() == [Request(CLUSTER, node=NODE), Request(LISTENER)]
    bench.respond(CLUSTER, "v1")
    bench.respond(LISTENER, "v1")
    assert bench.took_up() == []


def test_the_first_envoy_gets_earlier_responses_and_its_answer_is_sent_once() -> None:
    bench = Bench()
    bench.connect()
    nonce = bench.respond(CLUSTER, "v1")
    bench.took_up()
    bench.envoy(1, 0)
    bench.request(1, CLUSTER)
    assert bench.took_down() == [(1, CLUSTER, "v1")]
    assert bench.took_up() == []
    bench.ack(1, CLUSTER)
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v1", nonce=nonce)]
    assert bench.notifications == [ResponseAccepted(CLUSTER, "v1")]


def test_a_certificate_and_the_ca_that_replaces_the_former_one_reach_envoy_in_one_message() -> None:
    """In between new connections would fail; and no CA is trusted longer than the control plane wants."""
    bench = Bench()
    bench.serving()
    bench.request(1, SECRET, "identity", "trust")
    bench.respond(SECRET, "v1", any_of("identity", "by CA 1"), any_of("trust", "CA 1"))
    bench.ack(1, SECRET)
    bench.respond(SECRET, "v2", any_of("identity", "by CA 2"), any_of("trust", "CA 2"))
    assert bench.took_down()[-2:] == [(1, SECRET, "v1"), (1, SECRET, "v2")]
    both = encode_response(SECRET, "v2", (any_of("identity", "by CA 2"), any_of("trust", "CA 2")))
    assert set(bench.seen[1, SECRET].resources) == contents(both)


def test_the_next_upstream_stream_requests_types_in_the_order_of_envoy() -> None:
    bench = Bench()
    bench.connect()
    bench.envoy(1, 0)
    bench.request(1, CLUSTER)
    bench.request(1, ENDPOINTS, "a")
    bench.request(1, LISTENER)
    bench.disconnect()
    bench.took_up()
    bench.connect()
    assert [request.type_url for request in bench.took_up()] == [CLUSTER, ENDPOINTS, LISTENER]


def test_a_new_upstream_stream_has_accepted_versions_all_names_no_nonce_and_the_newest_node_once() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, ENDPOINTS, "a", "b")
    bench.respond(CLUSTER, "v2")
    bench.disconnect()
    bench.machine.renew_node(b"\x0a\x03new")
    bench.took_up()
    bench.connect()
    assert bench.took_up() == [
        Request(CLUSTER, "1", node=b"\x0a\x03new"),
        Request(LISTENER, "1"),
        Request(ENDPOINTS, names=("a", "b")),
    ]


def test_an_answer_without_a_control_plane_is_remembered_but_not_sent_later() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2")
    bench.disconnect()
    bench.ack(1, CLUSTER)
    assert bench.took_up() == []
    bench.connect()
    assert bench.took_up() == [Request(CLUSTER, "v2", node=NODE), Request(LISTENER, "1")]


def test_a_response_of_a_new_stream_that_changes_nothing_is_answered_at_once() -> None:
    bench = Bench()
    bench.serving()
    bench.disconnect()
    bench.connect()
    bench.took_up()
    nonce = bench.respond(CLUSTER, "other", one("1"))
    assert bench.took_down() == []
    assert bench.took_up() == [Request(CLUSTER, "other", nonce=nonce)]
    assert bench.notifications == []
    assert bench.machine.types()[0].accepted == "other"


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x0a\x05x"])
def test_bytes_that_cannot_be_read_change_nothing(data: bytes) -> None:
    bench = Bench()
    bench.serving()
    bench.do(bench.machine.upstream_message(data))
    bench.do(bench.machine.down_message(1, data))
    assert len(bench.notes) == 2
    assert not bench.up
    assert not bench.down


def test_an_unrequested_type_is_logged_and_ignored() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(SECRET, "v1")
    assert len(bench.notes) == 1
    assert [view.type_url for view in bench.machine.types()] == [CLUSTER, LISTENER]


# Names.


def test_names_of_a_fresh_envoy_remove_none_until_it_is_live() -> None:
    bench = Bench()
    bench.connect()
    bench.envoy(1, 0)
    bench.took_up()
    bench.request(1, SECRET, "identity")
    bench.request(1, SECRET, "identity", "ca", nonce="")
    assert [request.names for request in bench.took_up()] == [("identity",), ("identity", "ca")]
    bench.respond(SECRET, "v1", any_of("identity"), any_of("ca"))
    bench.ack(1, SECRET)
    bench.die(1, 0)
    bench.took_up()
    bench.envoy(2, 1)
    bench.request(2, SECRET, "ca")
    assert bench.took_up() == []
    assert bench.took_down()[-1] == (2, SECRET, "v1")
    bench.ack(2, SECRET)
    bench.live(1)
    assert [(request.names, request.nonce) for request in bench.took_up()] == [(("ca",), "1")]


def test_names_of_both_epochs_are_requested_until_the_old_one_has_exited() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, ENDPOINTS, "a", "b")
    bench.took_up()
    bench.envoy(2, 1)
    bench.request(2, ENDPOINTS, "b", "c")
    assert [request.names for request in bench.took_up()] == [("a", "b", "c")]
    bench.live(1)
    assert bench.took_up() == []
    bench.do(bench.machine.down_closed(1))
    assert bench.took_up() == []
    bench.do(bench.machine.envoy_ended(0, expected=True))
    assert [request.names for request in bench.took_up()] == [("b", "c")]


def test_a_live_envoy_that_reconnects_has_not_settled_until_it_has_requested_again() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, ENDPOINTS, "a")
    bench.envoy(2, 1)
    bench.request(2, ENDPOINTS, "a", "b")
    bench.live(1)
    bench.do(bench.machine.down_closed(2))
    bench.envoy(3, 1)
    bench.took_up()
    bench.request(1, ENDPOINTS, "a", "c")
    assert [request.names for request in bench.took_up()] == [("a", "b", "c")]
    bench.request(3, ENDPOINTS, "a")
    assert [request.names for request in bench.took_up()] == [("a", "c")]


def test_new_names_wait_while_a_response_is_open_since_they_would_answer_it() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, ENDPOINTS, "a")
    bench.respond(ENDPOINTS, "v1", any_of("a"))
    bench.ack(1, ENDPOINTS)
    nonce = bench.respond(ENDPOINTS, "v2", any_of("a", "changed"))
    bench.took_up()
    bench.envoy(2, 1)
    bench.request(2, ENDPOINTS, "b")
    assert bench.took_up() == []
    bench.ack(1, ENDPOINTS)
    assert bench.took_up() == [Request(ENDPOINTS, "v2", names=("a", "b"), nonce=nonce)]


def test_remembered_names_are_answered_at_once_since_the_control_plane_would_not_answer() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, ENDPOINTS, "a", "b")
    bench.respond(ENDPOINTS, "v1", any_of("a"), any_of("b"))
    bench.ack(1, ENDPOINTS)
    bench.envoy(2, 1)
    bench.request(2, ENDPOINTS, "a")
    bench.ack(2, ENDPOINTS)
    bench.took_up()
    bench.took_down()
    bench.request(2, ENDPOINTS, "a", "b")
    assert bench.took_down() == [(2, ENDPOINTS, "v1")]
    bench.ack(2, ENDPOINTS)
    bench.request(2, ENDPOINTS, "a", "b", "c")
    assert bench.took_down() == []
    assert [request.names for request in bench.took_up()] == [("a", "b", "c")]


def test_a_type_that_envoy_unsubscribes_is_not_sent_and_stays_requested() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, ENDPOINTS, "a")
    bench.respond(ENDPOINTS, "v1", any_of("a"))
    bench.ack(1, ENDPOINTS)
    bench.took_up()
    bench.took_down()
    bench.request(1, ENDPOINTS)
    nonce = bench.respond(ENDPOINTS, "v2", any_of("b"))
    assert bench.took_up() == []
    assert bench.took_down() == []
    bench.request(1, ENDPOINTS, "b")
    assert bench.took_down() == [(1, ENDPOINTS, "v2")]
    bench.ack(1, ENDPOINTS)
    assert bench.took_up() == [Request(ENDPOINTS, "v2", names=("b",), nonce=nonce)]


def test_a_new_stream_of_an_envoy_that_watches_nothing_of_a_type_does_not_request_all() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, ENDPOINTS, "a")
    bench.do(bench.machine.down_closed(1))
    bench.took_up()
    bench.envoy(2, 0)
    bench.request(2, ENDPOINTS)
    bench.request(2, SECRET)
    assert bench.took_up() == []
    bench.request(2, SECRET, "ca")
    assert bench.took_up() == [Request(SECRET, names=("ca",))]


def test_an_unknown_type_is_requested_as_envoy_does() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, "type.googleapis.com/new.Kind")
    assert bench.took_up() == [Request("type.googleapis.com/new.Kind")]
    nonce = bench.respond("type.googleapis.com/new.Kind", "v1")
    bench.ack(1, "type.googleapis.com/new.Kind")
    assert bench.took_up() == [Request("type.googleapis.com/new.Kind", "v1", nonce=nonce)]


def test_a_response_that_envoy_ignores_is_answered_as_envoy_does_and_not_accepted() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, ENDPOINTS, "a")
    bench.respond(ENDPOINTS, "v1", any_of("a"))
    bench.ack(1, ENDPOINTS)
    nonce = bench.respond(ENDPOINTS, "v2", any_of("a", "changed"))
    bench.took_up()
    bench.request(1, ENDPOINTS)
    assert bench.took_up() == [Request(ENDPOINTS, "v1", names=("a",), nonce=nonce)]
    assert ResponseAccepted(ENDPOINTS, "v2") not in bench.notifications


# Answers.


def test_a_stale_nonce_is_ignored() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, ENDPOINTS, "a")
    bench.respond(ENDPOINTS, "v1", any_of("a"))
    bench.ack(1, ENDPOINTS)
    old = bench.seen[1, ENDPOINTS].nonce
    nonce = bench.respond(ENDPOINTS, "v2", any_of("a", "changed"))
    bench.took_up()
    bench.took_down()
    bench.request(1, ENDPOINTS, "a", "b", nonce=old)
    assert bench.took_up() == []
    assert bench.took_down() == []
    bench.ack(1, ENDPOINTS)
    assert bench.took_up() == [Request(ENDPOINTS, "v2", names=("a", "b"), nonce=nonce)]
    assert bench.took_down() == []


def test_a_busy_envoy_gets_only_the_newest() -> None:
    bench = Bench()
    bench.serving()
    for version in ("v2", "v3", "v4"):
        nonce = bench.respond(CLUSTER, version)
    assert bench.took_down() == [(1, CLUSTER, "v2")]
    bench.ack(1, CLUSTER)
    assert bench.took_up() == []
    assert bench.took_down() == [(1, CLUSTER, "v4")]
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v4", nonce=nonce)]
    assert bench.notifications == [ResponseAccepted(CLUSTER, "v2"), ResponseAccepted(CLUSTER, "v4")]


def test_a_rejection_is_forwarded_unchanged_and_a_fresh_envoy_gets_the_last_good_one_first() -> None:
    bench = Bench()
    bench.serving()
    nonce = bench.respond(CLUSTER, "v2")
    bench.nack(1, CLUSTER)
    assert bench.took_down() == [(1, CLUSTER, "v2"), (1, CLUSTER, "1")]
    assert bench.took_up() == [Request(CLUSTER, "1", nonce=nonce, error=REFUSED)]
    assert bench.notifications == [ResponseRejected(CLUSTER, "v2", "rejected by Envoy")]
    bench.die(1, 0)
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    assert bench.took_down() == [(2, CLUSTER, "1")]
    # Then the rejected one, once, since it may be good for this Envoy: but nobody is owed an answer.
    bench.ack(2, CLUSTER)
    assert bench.took_down() == [(2, CLUSTER, "v2")]
    bench.nack(2, CLUSTER)
    assert bench.took_down() == [(2, CLUSTER, "1")]
    bench.ack(2, CLUSTER)
    assert bench.took_up() == []
    assert bench.took_down() == []


def test_rejected_content_that_is_sent_again_is_rejected_with_the_same_text_and_not_sent_to_envoy() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2")
    bench.nack(1, CLUSTER)
    bench.ack(1, CLUSTER)
    bench.took_up()
    bench.took_down()
    bench.notifications.clear()
    again = bench.respond(CLUSTER, "v3", one("v2"))
    assert bench.took_up() == [Request(CLUSTER, "1", nonce=again, error=REFUSED)]
    assert bench.took_down() == []
    assert bench.notifications == []
    assert bench.machine.types()[0].accepted == "1"
    nonce = bench.respond(CLUSTER, "v4")
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v4", nonce=nonce)]
    assert bench.notifications == [ResponseAccepted(CLUSTER, "v4")]


def test_an_acceptance_by_a_fresh_envoy_after_a_rejection_counts() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(LISTENER, "v2")
    bench.nack(1, LISTENER)
    bench.die(1, 0)
    bench.notifications.clear()
    bench.envoy(2, 1)
    bench.request(2, LISTENER)
    bench.ack(2, LISTENER)
    bench.ack(2, LISTENER)
    assert bench.notifications == [ResponseAccepted(LISTENER, "v2")]
    assert not bench.machine.types()[1].withheld


def test_the_good_part_of_a_first_response_that_is_rejected_is_sent_and_remembered() -> None:
    bench = Bench()
    bench.connect()
    bench.envoy(1, 0)
    bench.request(1, CLUSTER)
    bench.respond(CLUSTER, "v1", any_of("good"), any_of("bad"))
    bench.nack(1, CLUSTER, "adding cluster(s) bad: it is bad")
    bench.ack(1, CLUSTER)
    bench.die(1, 0)
    again = bench.respond(CLUSTER, "v1", any_of("good"), any_of("bad"))
    bench.took_up()
    bench.took_down()
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    assert contents(bench.seen[2, CLUSTER].raw) == {any_of("good")}
    # It may be good for this Envoy.
    bench.ack(2, CLUSTER)
    assert bench.took_up() == []
    bench.nack(2, CLUSTER, "adding cluster(s) bad: it is still bad")
    error = encode_status(13, "adding cluster(s) bad: it is still bad")
    assert bench.took_up() == [Request(CLUSTER, nonce=again, error=error)]


def test_a_starting_envoy_that_rejects_the_newest_gets_the_last_good_one() -> None:
    bench = Bench()
    bench.serving()
    bench.die(1, 0)
    nonce = bench.respond(LISTENER, "v2")
    bench.took_up()
    bench.envoy(2, 1)
    bench.request(2, LISTENER)
    bench.nack(2, LISTENER)
    assert bench.took_down() == [(2, LISTENER, "v2"), (2, LISTENER, "1")]
    assert bench.took_up() == [Request(LISTENER, nonce=nonce, error=REFUSED)]
    bench.ack(2, LISTENER)
    assert bench.took_down() == []
    assert bench.took_up() == []


def test_no_answer_is_lost_if_a_fresh_envoy_rejects_both() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(LISTENER, "v2")
    bench.nack(1, LISTENER)
    bench.die(1, 0)
    again = bench.respond(LISTENER, "v2")
    bench.took_up()
    bench.envoy(2, 1)
    bench.request(2, LISTENER)
    bench.nack(2, LISTENER)
    bench.nack(2, LISTENER)
    assert bench.took_up() == [Request(LISTENER, nonce=again, error=REFUSED)]


def test_a_live_envoy_that_reconnects_gets_nothing_rejected_and_the_control_plane_is_answered() -> None:
    bench = Bench()
    bench.serving()
    bench.do(bench.machine.down_closed(1))
    bench.respond(LISTENER, "v2")
    bench.envoy(2, 0)
    bench.request(2, LISTENER)
    bench.nack(2, LISTENER)
    bench.took_up()
    again = bench.respond(LISTENER, "v2")
    bench.ack(2, LISTENER)
    assert bench.took_up() == [Request(LISTENER, nonce=again, error=REFUSED)]
    assert bench.took_down() == [(2, LISTENER, "v2"), (2, LISTENER, "1")]


def test_an_envoy_that_becomes_live_gets_responses_withheld_until_then() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(LISTENER, "v2")
    bench.nack(1, LISTENER)
    bench.envoy(2, 1)
    bench.request(2, LISTENER)
    assert bench.took_down()[-1] == (2, LISTENER, "1")
    # It leaves it: it answers with another version, and has not taken it.
    bench.versions[2, LISTENER] = "other"
    bench.request(2, LISTENER)
    assert bench.took_down() == []
    bench.live(1)
    assert bench.took_down() == [(2, LISTENER, "v2")]


def test_a_rejection_of_a_response_that_is_no_longer_the_newest_is_remembered() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "bad")
    bench.respond(CLUSTER, "good")
    bench.nack(1, CLUSTER)
    assert bench.took_up() == []
    bench.ack(1, CLUSTER)
    bench.die(1, 0)
    bench.respond(CLUSTER, "bad")
    bench.took_down()
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    assert bench.took_down() == [(2, CLUSTER, "good")]


# Two Envoys.


def test_an_update_is_sent_to_both_epochs_and_answered_once() -> None:
    bench = Bench()
    bench.serving()
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    bench.ack(2, CLUSTER)
    bench.took_down()
    nonce = bench.respond(CLUSTER, "v2")
    assert bench.took_down() == [(1, CLUSTER, "v2"), (2, CLUSTER, "v2")]
    bench.ack(2, CLUSTER)
    assert bench.took_up() == []
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v2", nonce=nonce)]


def test_the_new_epoch_counts_once_it_is_live_and_its_earlier_answer_is_used() -> None:
    bench = Bench()
    bench.serving()
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    bench.ack(2, CLUSTER)
    nonce = bench.respond(CLUSTER, "v2")
    bench.nack(2, CLUSTER)
    assert bench.took_up() == []
    bench.live(1)
    assert bench.took_up() == [Request(CLUSTER, "1", nonce=nonce, error=REFUSED)]
    bench.ack(1, CLUSTER)
    assert bench.took_up() == []


@pytest.mark.parametrize("ended_first", [True, False])
def test_the_answer_of_the_other_epoch_is_used_if_the_primary_exits(ended_first: bool) -> None:
    bench = Bench()
    bench.serving()
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    bench.ack(2, CLUSTER)
    nonce = bench.respond(CLUSTER, "v2")
    bench.ack(2, CLUSTER)
    if ended_first:
        bench.do(bench.machine.envoy_ended(0, expected=False))
    bench.do(bench.machine.down_closed(1))
    if not ended_first:
        bench.do(bench.machine.envoy_ended(0, expected=False))
    assert bench.took_up() == [Request(CLUSTER, "v2", nonce=nonce)]
    assert bench.notifications == [ResponseAccepted(CLUSTER, "v2")]


def test_an_answer_read_after_its_envoy_has_exited_still_counts() -> None:
    bench = Bench()
    bench.serving()
    nonce = bench.respond(CLUSTER, "v2")
    bench.do(bench.machine.envoy_ended(0, expected=False))
    bench.ack(1, CLUSTER)
    bench.do(bench.machine.down_closed(1))
    assert bench.took_up() == [Request(CLUSTER, "v2", nonce=nonce)]
    assert bench.notes == []


def test_an_update_while_no_envoy_runs_is_answered_by_the_next_one() -> None:
    bench = Bench()
    bench.serving()
    bench.die(1, 0)
    nonce = bench.respond(CLUSTER, "v2")
    assert bench.took_up() == []
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    bench.ack(2, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v2", nonce=nonce)]


def test_a_reconnect_raises_no_suspicion() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2")
    bench.do(bench.machine.down_closed(1))
    bench.envoy(2, 0)
    bench.do(bench.machine.envoy_ended(0, expected=False))
    bench.do(bench.machine.down_closed(2))
    assert bench.notes == []


# The guard.


def test_a_response_that_envoy_exited_with_is_retried_after_30_seconds_and_rejected_after_a_second_exit() -> None:
    bench = Bench()
    bench.serving()
    nonce = bench.respond(CLUSTER, "v2")
    bench.die(1, 0)
    assert bench.machine.next_tick() is None
    bench.took_down()
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    assert bench.took_down() == [(2, CLUSTER, "1")]
    bench.ack(2, CLUSTER)
    bench.live(1, now=100.0)
    assert bench.machine.next_tick() == 130.0
    bench.do(bench.machine.tick(129.9))
    assert bench.took_down() == []
    bench.do(bench.machine.tick(130.0))
    assert bench.took_down() == [(2, CLUSTER, "v2")]
    assert bench.machine.next_tick() is None
    assert bench.took_up() == []
    bench.die(2, 1)
    (refusal,) = bench.took_up()
    assert (refusal.version, refusal.nonce, b"exited while applying" in refusal.error) == ("1", nonce, True)
    assert [
        (action.version, action.by_guard) for action in bench.notifications if isinstance(action, ResponseRejected)
    ] == [("v2", True)]
    bench.envoy(3, 2)
    bench.request(3, CLUSTER)
    bench.ack(3, CLUSTER)
    bench.live(2, now=200.0)
    assert bench.took_down() == [(3, CLUSTER, "1")]
    assert bench.machine.next_tick() is None
    # Sent again, under whatever version, it is refused at once; something else is passed on.
    bench.respond(CLUSTER, "v3", one("v2"))
    assert bench.took_down() == []
    assert [bool(request.error) for request in bench.took_up()] == [True]
    bench.respond(CLUSTER, "v4")
    assert bench.took_down() == [(3, CLUSTER, "v4")]


def test_an_accepted_trial_clears_the_suspicion_for_all() -> None:
    bench = Bench()
    bench.serving()
    nonce = bench.respond(CLUSTER, "v2")
    bench.die(1, 0)
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    bench.ack(2, CLUSTER)
    bench.live(1, now=0.0)
    bench.do(bench.machine.tick(30.0))
    bench.ack(2, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v2", nonce=nonce)]
    bench.took_down()
    bench.envoy(3, 2)
    bench.request(3, CLUSTER)
    assert bench.took_down() == [(3, CLUSTER, "v2")]


def test_suspects_are_retried_one_at_a_time() -> None:
    bench = Bench()
    bench.serving()
    # The other way round listeners would wait for the answer to clusters.
    bench.respond(LISTENER, "v2")
    bench.respond(CLUSTER, "v2")
    bench.die(1, 0)
    bench.envoy(2, 1)
    for type_url in (CLUSTER, LISTENER):
        bench.request(2, type_url)
        bench.ack(2, type_url)
    bench.live(1, now=0.0)
    bench.took_down()
    bench.do(bench.machine.tick(30.0))
    bench.do(bench.machine.tick(31.0))
    assert bench.took_down() == [(2, CLUSTER, "v2")]
    bench.ack(2, CLUSTER)
    bench.do(bench.machine.tick(32.0))
    assert bench.took_down() == [(2, LISTENER, "v2")]


def test_a_trial_that_has_nothing_to_send_does_not_block_the_next_one() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2")
    bench.nack(1, CLUSTER)
    bench.ack(1, CLUSTER)
    bench.respond(LISTENER, "v2")
    bench.die(1, 0)
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    bench.ack(2, CLUSTER)
    bench.die(2, 1)
    bench.live(2, now=0.0)
    bench.envoy(3, 2)
    for type_url in (CLUSTER, LISTENER):
        bench.request(3, type_url)
        bench.ack(3, type_url)
    bench.took_down()
    # Not its first stream: it may have rejected this before, and gets what is left of it.
    bench.do(bench.machine.tick(30.0))
    assert bench.took_down() == []
    bench.do(bench.machine.tick(31.0))
    assert bench.took_down() == [(3, LISTENER, "v2")]


def test_a_newer_response_is_sent_even_if_the_previous_one_is_suspected() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2")
    bench.die(1, 0)
    bench.respond(CLUSTER, "v3")
    bench.took_down()
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    assert bench.took_down() == [(2, CLUSTER, "v3")]


@pytest.mark.parametrize("expected", [True, False])
def test_an_expected_exit_or_one_with_a_good_response_raises_no_suspicion(expected: bool) -> None:
    bench = Bench()
    bench.serving()
    if expected:
        bench.respond(CLUSTER, "v2")
    bench.do(bench.machine.envoy_ended(0, expected=expected))
    bench.do(bench.machine.down_closed(1))
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    bench.do(bench.machine.envoy_ended(1, expected=expected))
    bench.do(bench.machine.down_closed(2))
    assert bench.notes == []
    assert not bench.machine.types()[0].withheld


def test_an_unsubscribed_type_is_not_suspected_since_envoy_may_never_answer() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, ENDPOINTS, "a")
    bench.respond(ENDPOINTS, "v1", any_of("a"))
    bench.request(1, ENDPOINTS, nonce="stale")
    bench.die(1, 0)
    assert bench.notes == []


def test_a_deadly_response_is_not_accepted_even_if_another_envoy_accepts_it() -> None:
    bench = Bench()
    bench.serving()
    for epoch in (1, 2):
        bench.envoy(epoch + 1, epoch)
        bench.request(epoch + 1, CLUSTER)
        bench.ack(epoch + 1, CLUSTER)
    bench.respond(CLUSTER, "v2")
    bench.die(2, 1)
    bench.die(3, 2)
    bench.ack(1, CLUSTER)
    assert [type(action) for action in bench.notifications] == [ResponseRejected]
    assert bench.machine.types()[0].accepted == "1"


def test_a_newer_response_ends_a_trial() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(LISTENER, "v2")
    bench.respond(CLUSTER, "v2")
    bench.die(1, 0)
    bench.envoy(2, 1)
    for type_url in (CLUSTER, LISTENER):
        bench.request(2, type_url)
        bench.ack(2, type_url)
    bench.live(1, now=0.0)
    bench.do(bench.machine.tick(30.0))
    assert bench.machine.next_tick() is None
    bench.respond(CLUSTER, "v3")
    assert bench.machine.next_tick() == 30.0


# Memory.


def test_a_snapshot_gives_a_fresh_envoy_everything_without_a_control_plane() -> None:
    bench = Bench()
    bench.serving()
    bench.request(1, SECRET, "ca")
    bench.respond(SECRET, "s1", any_of("ca"))
    bench.ack(1, SECRET)
    bench.respond(CLUSTER, "v2")
    bench.nack(1, CLUSTER)
    encoded = msgspec.msgpack.encode(bench.machine.snapshot())
    memory = msgspec.msgpack.decode(encoded, type=RelaySnapshot)
    bench = Bench(RelayStateMachine(NODE, snapshot=memory))
    assert bench.machine.snapshot() == memory
    bench.envoy(1, 5)
    bench.request(1, CLUSTER)
    bench.request(1, LISTENER)
    bench.request(1, SECRET, "ca")
    assert bench.took_down() == [(1, CLUSTER, "1"), (1, LISTENER, "1"), (1, SECRET, "s1")]
    assert bench.took_up() == []
    bench.connect()
    assert bench.took_up() == [
        Request(CLUSTER, "1", node=NODE),
        Request(LISTENER, "1"),
        Request(SECRET, "s1", names=("ca",)),
    ]
    bench.respond(CLUSTER, "v3")
    bench.ack(1, CLUSTER)
    assert bench.took_down() == [(1, CLUSTER, "v3")]


def restored(*, accepted: str) -> Bench:
    """A relay that begins with what an earlier one remembered of clusters and listeners."""
    previous = Bench()
    previous.serving()
    previous.respond(CLUSTER, accepted)
    previous.ack(1, CLUSTER)
    return Bench(RelayStateMachine(NODE, snapshot=previous.machine.snapshot()))


def test_an_envoy_that_runs_an_unknown_version_keeps_it_until_the_control_plane_responds() -> None:
    bench = restored(accepted="older")
    bench.envoy(1, 0)
    bench.versions[1, CLUSTER] = "newer"
    bench.request(1, CLUSTER)
    bench.request(1, CLUSTER)
    bench.live(0)
    assert bench.took_down() == []
    bench.connect()
    nonce = bench.respond(CLUSTER, "newest")
    assert bench.took_down() == [(1, CLUSTER, "newest")]
    bench.took_up()
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "newest", nonce=nonce)]


def test_an_envoy_that_keeps_its_own_version_gets_no_trial() -> None:
    previous = Bench()
    previous.serving()
    previous.respond(CLUSTER, "v2")
    previous.die(1, 0)
    bench = Bench(RelayStateMachine(NODE, snapshot=previous.machine.snapshot()))
    bench.envoy(1, 0)
    bench.versions[1, CLUSTER] = "newer"
    bench.request(1, CLUSTER)
    bench.live(0)
    assert bench.machine.next_tick() is None


def test_an_envoy_that_runs_a_remembered_version_and_a_fresh_one_get_it_at_once() -> None:
    bench = restored(accepted="older")
    bench.envoy(1, 0)
    bench.versions[1, CLUSTER] = "older"
    bench.request(1, CLUSTER)
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    assert bench.took_down() == [(1, CLUSTER, "older"), (2, CLUSTER, "older")]


def test_keys_that_an_envoy_has_are_not_withheld_from_it() -> None:
    bench = Bench(RelayStateMachine(NODE, withhold_secrets=True))
    bench.envoy(1, 0)
    bench.versions[1, SECRET] = "s1"
    bench.request(1, SECRET, "ca")
    assert bench.took_down() == []


def test_unreadable_memory_is_ignored() -> None:
    bench = Bench()
    bench.serving()
    memory = bench.machine.snapshot()
    torn = msgspec.structs.replace(memory.types[0], accepted=b"\xff", latest=memory.types[1].accepted)
    bench = Bench(RelayStateMachine(NODE, snapshot=msgspec.structs.replace(memory, types=(torn, *memory.types[1:]))))
    assert [(view.accepted, view.latest) for view in bench.machine.types()] == [("", ""), ("1", "1")]


def test_a_secret_is_withheld_at_once_after_a_start_from_disk_and_sent_later() -> None:
    bench = Bench(RelayStateMachine(NODE, withhold_secrets=True))
    bench.envoy(1, 0)
    bench.request(1, SECRET, "ca")
    assert bench.took_down() == [(1, SECRET, "withheld")]
    bench.nack(1, SECRET)
    bench.request(1, SECRET, "ca", "identity")
    assert bench.took_down() == [(1, SECRET, "withheld")]
    bench.nack(1, SECRET)
    bench.request(1, ENDPOINTS, "a")
    assert (bench.took_down(), bench.notifications) == ([], [])
    bench.connect()
    assert bench.took_up() == [
        Request(SECRET, names=("ca", "identity"), node=NODE),
        Request(ENDPOINTS, names=("a",)),
        Request(CLUSTER),
        Request(LISTENER),
    ]
    nonce = bench.respond(SECRET, "v1", any_of("ca"), any_of("identity"))
    bench.ack(1, SECRET)
    assert bench.took_up() == [Request(SECRET, "v1", names=("ca", "identity"), nonce=nonce)]


def test_a_secret_requested_on_a_refused_stream_is_withheld_after_a_start_from_disk() -> None:
    bench = Bench(RelayStateMachine(NODE, withhold_secrets=True))
    bench.connect()
    bench.envoy(1, 0)
    bench.request(1, SECRET, "ca")
    assert bench.took_down() == []
    bench.disconnect()
    assert bench.took_down() == [(1, SECRET, "withheld")]


def test_a_restored_snapshot_serves_only_until_the_control_plane_gives_a_stream() -> None:
    previous = Bench()
    previous.serving()
    memory = previous.machine.snapshot()
    bench = Bench()
    bench.envoy(1, 0)
    bench.request(1, CLUSTER)
    assert bench.took_down() == []
    bench.do(bench.machine.restore(memory))
    assert bench.took_down() == [(1, CLUSTER, "1")]
    late = Bench()
    late.connect()
    late.respond(CLUSTER, "v9")
    assert late.machine.restore(memory) == []
    assert [view.latest for view in late.machine.types()] == ["v9", ""]


def test_an_envoy_is_supplied_once_all_types_that_it_watches_are_remembered() -> None:
    bench = Bench()

    def supplied() -> bool:
        return bench.machine.supplied

    bench.connect()
    bench.envoy(1, 0)
    assert not supplied()
    bench.request(1, CLUSTER)
    # As on a new stream, of a type of which it watches nothing any more.
    bench.request(1, ENDPOINTS)
    assert not supplied()
    bench.respond(CLUSTER, "1")
    assert supplied()
    bench.request(1, SECRET, "ca")
    assert not supplied()


# One resource of several.


def names_of(bench: Bench, stream: int, type_url: str) -> list[str]:
    return sorted(bench.seen[stream, type_url].by_name)


def test_a_rejected_resource_is_withheld_and_the_others_are_sent_at_once() -> None:
    bench = Bench()
    bench.serving()
    nonce = bench.respond(CLUSTER, "v2", one("1"), any_of("good"), any_of("bad"))
    text = "Error adding/updating cluster(s) bad: it is bad"
    bench.nack(1, CLUSTER, text)
    assert bench.took_up() == [Request(CLUSTER, "1", nonce=nonce, error=encode_status(13, text))]
    assert names_of(bench, 1, CLUSTER) == ["good", "one"]
    bench.ack(1, CLUSTER)
    assert bench.took_up() == []
    (withheld,) = bench.machine.withheld()
    assert (withheld.name, withheld.reason) == ("bad", text)
    # Later changes are applied, and rejected with the remembered text.
    nonce = bench.respond(CLUSTER, "v3", one("1"), any_of("good"), any_of("bad"), any_of("later"))
    assert names_of(bench, 1, CLUSTER) == ["good", "later", "one"]
    bench.ack(1, CLUSTER)
    (answer,) = bench.took_up()
    assert (answer.nonce, answer.error) == (nonce, encode_status(13, text))
    nonce = bench.respond(CLUSTER, "v4", one("1"), any_of("good"), any_of("bad", "mended"), any_of("later"))
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v4", nonce=nonce)]
    assert bench.machine.withheld() == []


def test_a_resource_that_the_control_plane_did_not_send_again_is_not_rejected_again() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2", one("1"), any_of("bad"))
    bench.nack(1, CLUSTER, "bad: it is bad")
    bench.ack(1, CLUSTER)
    bench.took_up()
    # As in delta: the whole set is known, one resource of it was sent.
    whole = encode_response(CLUSTER, "v3", [one("1"), any_of("bad"), any_of("later")], "9")
    bench.do(bench.machine.upstream_message(replace(Response.parse(whole), sent=frozenset({"later"}))))
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v3", nonce="9")]
    assert [each.name for each in bench.machine.withheld()] == ["bad"]


def delta(version: str, nonce: str, sent: str, *resources: bytes) -> Response:
    """Return a whole set, of which the control plane sent one resource."""
    return replace(Response.parse(encode_response(CLUSTER, version, resources, nonce)), sent=frozenset({sent}))


def test_a_rejection_that_comes_after_the_next_response_is_forwarded_with_the_answer_to_that_one() -> None:
    bench = Bench()
    bench.serving()
    whole = [one("1"), any_of("bad")]
    bench.do(bench.machine.upstream_message(delta("v2", "8", "bad", *whole)))
    bench.do(bench.machine.upstream_message(delta("v3", "9", "later", *whole, any_of("later"))))
    bench.nack(1, CLUSTER, "bad: it is bad")
    assert bench.took_up() == []
    assert names_of(bench, 1, CLUSTER) == ["later", "one"]
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "1", nonce="9", error=encode_status(13, "bad: it is bad"))]
    # Once.
    bench.do(bench.machine.upstream_message(delta("v4", "10", "more", *whole, any_of("later"), any_of("more"))))
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v4", nonce="10")]


def test_a_rejection_by_a_later_envoy_is_forwarded_with_the_next_answer() -> None:
    bench = Bench()
    bench.serving()
    whole = [one("1"), any_of("bad")]
    bench.do(bench.machine.upstream_message(delta("v2", "8", "bad", *whole)))
    bench.ack(1, CLUSTER)
    bench.took_up()
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    bench.live(1)
    bench.nack(2, CLUSTER, "bad: it is bad")
    bench.ack(2, CLUSTER)
    assert bench.took_up() == []
    bench.do(bench.machine.upstream_message(delta("v3", "9", "later", *whole, any_of("later"))))
    bench.ack(2, CLUSTER)
    assert [(request.nonce, request.error) for request in bench.took_up()] == [
        ("9", encode_status(13, "bad: it is bad"))
    ]


def test_a_rejected_resource_is_rejected_again_if_the_next_response_comes_before_the_answer() -> None:
    bench = Bench()
    bench.serving()
    whole = [one("1"), any_of("bad")]
    bench.do(bench.machine.upstream_message(delta("v2", "8", "bad", *whole)))
    bench.nack(1, CLUSTER, "bad: it is bad")
    bench.ack(1, CLUSTER)
    bench.disconnect()
    bench.connect()
    bench.took_up()
    whole.append(any_of("later"))
    bench.do(bench.machine.upstream_message(delta("v3", "1", "bad", *whole, any_of("open"))))
    bench.do(bench.machine.upstream_message(delta("v4", "2", "later", *whole)))
    bench.ack(1, CLUSTER)
    bench.ack(1, CLUSTER)
    assert [(request.nonce, request.error) for request in bench.took_up()] == [
        ("2", encode_status(13, "bad: it is bad"))
    ]


def test_a_late_rejection_is_not_forwarded_once_the_resource_is_gone_or_the_stream_is_new() -> None:
    bench = Bench()
    bench.serving()
    for nonce, gone in (("8", True), ("11", False)):
        whole = [one("1"), any_of("bad", nonce)]
        bench.do(bench.machine.upstream_message(delta(f"v{nonce}", nonce, "bad", *whole)))
        bench.do(bench.machine.upstream_message(delta("later", f"{nonce}+", "later", *whole, any_of("later"))))
        bench.nack(1, CLUSTER, "bad: it is bad")
        if not gone:
            bench.disconnect()
            bench.connect()
        bench.took_up()
        remains = [one("1"), any_of("later", nonce), *([] if gone else whole[1:])]
        bench.do(bench.machine.upstream_message(delta("last", f"{nonce}++", "later", *remains)))
        bench.ack(1, CLUSTER)
        bench.ack(1, CLUSTER)
        assert bench.took_up()[-1:] == [Request(CLUSTER, "last", nonce=f"{nonce}++")]


@pytest.mark.parametrize("from_disk", [True, False])
def test_a_rejected_resource_is_withheld_over_a_restart(from_disk: bool) -> None:
    previous = Bench()
    previous.serving()
    previous.respond(CLUSTER, "v2", one("1"), any_of("bad"))
    previous.nack(1, CLUSTER, "bad: it is bad")
    previous.ack(1, CLUSTER)
    memory = previous.machine.snapshot()
    if from_disk:
        types = tuple(msgspec.structs.replace(without_reasons(saved), latest=None) for saved in memory.types)
        memory = RelaySnapshot(types)
    bench = Bench(RelayStateMachine(NODE, snapshot=memory))
    bench.live(0)
    bench.envoy(1, 0)
    bench.versions[1, CLUSTER] = "1"
    bench.request(1, CLUSTER)
    assert names_of(bench, 1, CLUSTER) == ["one"]
    bench.ack(1, CLUSTER)
    bench.connect()
    bench.took_up()
    bench.took_down()
    nonce = bench.respond(CLUSTER, "v9", one("1"), any_of("bad"))
    reason = EARLIER if from_disk else "bad: it is bad"
    assert bench.took_down() == []
    assert bench.took_up() == [Request(CLUSTER, "1", nonce=nonce, error=encode_status(13, reason))]
    assert bench.notifications == [ResponseRejected(CLUSTER, "v9", reason)]


def test_a_resource_that_envoy_does_not_name_is_found_by_halves() -> None:
    bench = Bench()
    bench.serving()
    resources = [any_of(name) for name in ("a", "b", "bad", "d")]
    bench.respond(LISTENER, "v2", one("1"), *resources)
    sent = []
    while bench.took_down():
        names = names_of(bench, 1, LISTENER)
        sent.append(names)
        if "bad" in names:
            bench.nack(1, LISTENER)
        else:
            bench.ack(1, LISTENER)
    assert sent[:2] == [["a", "b", "bad", "d", "one"], ["one"]]
    assert sent[-1] == ["a", "b", "d", "one"]
    assert [each.name for each in bench.machine.withheld()] == ["bad"]


# Only what has changed.


def test_endpoints_are_sent_alone_if_they_changed_or_their_cluster_did() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2", one("1"), eds_cluster("a", "1"), eds_cluster("b", "1"))
    bench.ack(1, CLUSTER)
    bench.request(1, ENDPOINTS, "a", "b")
    bench.respond(ENDPOINTS, "e1", any_of("a"), any_of("b"), any_of("unrequested"))
    assert names_of(bench, 1, ENDPOINTS) == ["a", "b"]
    bench.ack(1, ENDPOINTS)
    bench.respond(ENDPOINTS, "e2", any_of("a"), any_of("b", "changed"))
    assert names_of(bench, 1, ENDPOINTS) == ["b"]
    bench.ack(1, ENDPOINTS)
    bench.took_down()
    bench.took_up()
    bench.respond(CLUSTER, "v3", one("1"), eds_cluster("a", "1"), eds_cluster("b", "2"))
    assert bench.took_down() == [(1, CLUSTER, "v3"), (1, ENDPOINTS, "e2")]
    assert names_of(bench, 1, ENDPOINTS) == ["b"]
    bench.ack(1, ENDPOINTS)
    nonce = bench.respond(ENDPOINTS, "e3", any_of("b", "changed"), any_of("a"))
    assert bench.took_down() == []
    assert bench.took_up() == [Request(ENDPOINTS, "e3", names=("a", "b"), nonce=nonce)]


def test_endpoints_of_a_rejected_cluster_are_requested_once_envoy_has_the_clusters() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2", eds_cluster("good", "1"), eds_cluster("bad", "1"))
    bench.took_up()
    bench.request(1, ENDPOINTS, "good", nonce="")
    bench.request(1, ENDPOINTS, "good")
    bench.nack(1, CLUSTER, "bad: it is bad")
    assert bench.took_up()[-1].names == ("good", "bad")


# Clusters that are removed.


def test_a_removed_cluster_stays_until_listeners_have_drained() -> None:
    bench = Bench(RelayStateMachine(NODE, drain_time=5.0))
    bench.serving()
    bench.respond(CLUSTER, "v2", one("1"), any_of("old"))
    bench.ack(1, CLUSTER)
    bench.took_up()
    nonce = bench.respond(CLUSTER, "v3", one("1"), any_of("new"))
    assert names_of(bench, 1, CLUSTER) == ["new", "old", "one"]
    bench.ack(1, CLUSTER)
    assert bench.took_up() == [Request(CLUSTER, "v3", nonce=nonce)]
    assert bench.machine.types()[0].accepted == "v3"
    bench.do(bench.machine.tick(100.0))
    bench.respond(LISTENER, "v2")
    bench.ack(1, LISTENER)
    bench.do(bench.machine.tick(101.0))
    bench.took_up()
    bench.took_down()
    # Another Envoy has no use for it.
    bench.envoy(2, 1)
    bench.request(2, CLUSTER)
    assert names_of(bench, 2, CLUSTER) == ["new", "one"]
    bench.took_down()
    assert bench.machine.next_tick() == 108.0
    bench.do(bench.machine.tick(108.0))
    assert names_of(bench, 1, CLUSTER) == ["new", "one"]
    bench.ack(1, CLUSTER)
    assert bench.took_up() == []
    assert bench.machine.next_tick() is None


def test_a_rejected_cluster_is_not_held_when_it_is_removed() -> None:
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2", one("1"), any_of("bad"))
    bench.nack(1, CLUSTER, "bad: it is bad")
    bench.ack(1, CLUSTER)
    nonce = bench.respond(CLUSTER, "v3", one("1"))
    assert bench.took_up()[-1] == Request(CLUSTER, "v3", nonce=nonce)
    assert bench.machine.next_tick() is None


def test_held_clusters_are_handed_over() -> None:
    previous = Bench()
    previous.serving()
    previous.respond(CLUSTER, "v2", any_of("new"))
    previous.ack(1, CLUSTER)
    version = previous.seen[1, CLUSTER].version
    bench = Bench(RelayStateMachine(NODE, snapshot=previous.machine.snapshot()))
    bench.live(0)
    bench.envoy(1, 0)
    bench.versions[1, CLUSTER] = version
    bench.request(1, CLUSTER)
    assert names_of(bench, 1, CLUSTER) == ["new", "one"]


# Clusters that Envoy does not answer.


def jammed(*more: bytes) -> Bench:
    """Send clusters that Envoy leaves unanswered, while it answers listeners that were sent later."""
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2", one("1"), *more)
    bench.respond(LISTENER, "v2")
    for now in (50.0 - LONGEST_HOLD, 50.0):
        bench.do(bench.machine.tick(now))
    bench.ack(1, LISTENER)
    bench.do(bench.machine.tick(50.0))
    bench.took_up()
    bench.took_down()
    return bench


def test_new_clusters_are_withdrawn_if_envoy_does_not_answer_while_it_answers_later_types() -> None:
    bench = jammed(any_of("new"))
    assert bench.machine.next_tick() == 50.0 + JAMMED_AFTER
    bench.do(bench.machine.tick(50.0 + JAMMED_AFTER))
    assert bench.took_down() == [(1, CLUSTER, "1")]
    (answer,) = bench.took_up()
    assert b"not acknowledged" in answer.error
    bench.ack(1, CLUSTER)
    assert [each.name for each in bench.machine.withheld()] == ["new"]
    assert bench.machine.next_tick() is None


def test_an_answer_ends_the_wait() -> None:
    bench = jammed(any_of("new"))
    bench.ack(1, CLUSTER)
    assert bench.machine.next_tick() is None


def test_clusters_that_envoy_runs_already_are_not_withdrawn() -> None:
    bench = jammed()
    bench.do(bench.machine.tick(50.0 + JAMMED_AFTER))
    assert bench.took_down() == []
    assert bench.machine.withheld() == []


def test_an_envoy_that_waits_for_endpoints_has_more_time() -> None:
    bench = jammed(eds_cluster("new", "1"))
    bench.request(1, ENDPOINTS, "new")
    bench.do(bench.machine.tick(50.0 + JAMMED_AFTER))
    assert bench.took_down() == []
    assert bench.machine.next_tick() == 50.0 + JAMMED_AFTER + STARVED_AFTER
    bench.do(bench.machine.tick(50.0 + JAMMED_AFTER + STARVED_AFTER))
    assert bench.took_down() == [(1, CLUSTER, "1")]
