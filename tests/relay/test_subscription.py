"""One resource type: which response a stream gets, what is remembered, and in which order."""

from __future__ import annotations

import pytest

from kumadp.relay.messages import CLUSTER, ENDPOINTS, LISTENER, Response, encode_response
from kumadp.relay.protobuf import field_bytes
from kumadp.relay.snapshot import TypeSnapshot
from kumadp.relay.subscription import MOST_VERDICTS, Delivery, Subscription, Verdicts, in_order


def response(version: str, *resources: str, type_url: str = CLUSTER) -> Response:
    return Response.parse(encode_response(type_url, version, [field_bytes(1, name.encode()) for name in resources]))


def delivery(serial: int, *resources: str) -> Delivery:
    return Delivery(serial, response(f"v{serial}", *resources))


GOOD, NEWER = delivery(1, "a"), delivery(2, "a", "b")


def with_both(trial: int | None = None) -> Subscription:
    """Return a subscription that has accepted GOOD and received NEWER, with a stream for a trial of it."""
    subscription = Subscription(CLUSTER)
    subscription.arrived(GOOD)
    subscription.accept(GOOD)
    subscription.arrived(NEWER)
    subscription.trial = trial
    return subscription


def test_content_is_compared_without_version_and_order() -> None:
    assert Delivery(1, response("v1", "a", "b")).same_content(Delivery(2, response("v2", "b", "a")))
    assert not GOOD.same_content(NEWER)


def test_verdicts_are_by_content_and_the_oldest_are_forgotten() -> None:
    verdicts = Verdicts()
    assert GOOD not in verdicts
    verdicts.add(GOOD)
    assert delivery(9, "a") in verdicts
    verdicts.discard(delivery(8, "a"))
    assert GOOD not in verdicts
    verdicts.add(GOOD)
    for number in range(MOST_VERDICTS):
        assert GOOD in verdicts
        verdicts.add(delivery(number, f"other-{number}"))
    assert GOOD not in verdicts
    assert len(list(verdicts)) == MOST_VERDICTS


def test_without_a_response_there_is_nothing_to_send() -> None:
    assert Subscription(CLUSTER).choose(1, tried=True) is None


@pytest.mark.parametrize("tried", [False, True])
def test_the_latest_is_sent_unless_something_is_wrong_with_it(tried: bool) -> None:
    assert with_both().choose(1, tried=tried) is NEWER


def test_a_rejected_response_is_only_for_an_envoy_that_has_tried_the_accepted_one() -> None:
    subscription = with_both()
    subscription.reject(NEWER)
    assert subscription.choose(1, tried=False) is GOOD
    assert subscription.choose(1, tried=True) is NEWER
    assert (subscription.rejections, subscription.settled) == (1, True)


def test_a_suspected_response_is_only_for_the_stream_of_its_trial() -> None:
    subscription = with_both(trial=7)
    subscription.suspected.add(NEWER)
    assert subscription.choose(1, tried=True) is GOOD
    assert subscription.choose(7, tried=True) is NEWER
    subscription.answered(NEWER, applied=True)
    assert subscription.trial is None
    assert subscription.choose(1, tried=False) is NEWER


def test_a_deadly_response_is_for_nobody() -> None:
    subscription = with_both()
    subscription.deadly.add(NEWER)
    assert subscription.choose(1, tried=True) is GOOD


@pytest.mark.parametrize(("verdict", "sent"), [("rejected", True), ("suspected", True), ("deadly", False)])
def test_without_an_accepted_response_only_a_deadly_one_is_withheld(verdict: str, sent: bool) -> None:
    subscription = Subscription(CLUSTER)
    subscription.arrived(GOOD)
    getattr(subscription, verdict).add(GOOD)
    assert (subscription.choose(1, tried=False) is GOOD) is sent


def test_versions_that_it_knows() -> None:
    subscription = with_both()
    assert [subscription.knows(version) for version in ("", "v1", "v2", "v3")] == [True, True, True, False]


def test_a_dropped_response_is_open_and_changes_nothing_else() -> None:
    subscription = with_both()
    subscription.open = False
    subscription.dropped("n9")
    assert (subscription.open, subscription.nonce, subscription.latest, subscription.rejections) == (
        True,
        "n9",
        NEWER,
        1,
    )


def test_the_view_for_the_status() -> None:
    subscription = with_both()
    subscription.reject(NEWER)
    view = subscription.view()
    assert (view.accepted, view.latest, view.open, view.names, view.rejections, view.withheld) == (
        *("v1", "v2", True, 0, 1, True),
    )


def test_its_memory_is_restored_as_it_was() -> None:
    subscription = with_both()
    subscription.names = ("a",)
    subscription.reject(NEWER)
    saved = subscription.snapshot()
    restored = Subscription(CLUSTER, saved.names)
    restored.restore(saved, 5)
    assert restored.snapshot() == saved
    assert restored.choose(1, tried=False) is restored.accepted
    assert restored.accepted is not None
    assert restored.latest is not None
    assert (restored.accepted.serial, restored.latest.serial) == (5, 6)


@pytest.mark.parametrize("raw", [b"\xff", b"", encode_response(LISTENER, "v1", [])])
def test_a_response_that_cannot_be_read_or_is_of_another_type_is_not_restored(raw: bytes) -> None:
    subscription = Subscription(CLUSTER)
    subscription.restore(TypeSnapshot(CLUSTER, (), raw), 1)
    assert (subscription.accepted, subscription.latest) == (None, None)


def test_requested_types_come_before_prefetched_ones_in_the_order_of_their_requests() -> None:
    types = {url: Subscription(url) for url in (CLUSTER, LISTENER)}
    types = in_order(types, Subscription(ENDPOINTS))
    assert list(types) == [ENDPOINTS, CLUSTER, LISTENER]
    types = in_order(types, types[LISTENER])
    assert list(types) == [ENDPOINTS, LISTENER, CLUSTER]
    assert list(in_order(types, types[ENDPOINTS])) == [ENDPOINTS, LISTENER, CLUSTER]
