"""One resource type: which response a stream gets, what is remembered, and in which order."""

from __future__ import annotations

import msgspec
import pytest

from kumadp.relay.messages import CLUSTER, ENDPOINTS, LISTENER, Response, encode_response
from kumadp.relay.offer import Delivery, EnvoyOffer
from kumadp.relay.snapshot import TypeSnapshot
from kumadp.relay.subscription import Subscription, held_of, in_order
from kumadp.relay.verdicts import MOST_VERDICTS, Verdicts
from tests.relay.harness import any_of


def response(version: str, *resources: str, type_url: str = CLUSTER) -> Response:
    return Response.parse(encode_response(type_url, version, [any_of(name) for name in resources]))


def delivery(serial: int, *resources: str) -> Delivery:
    return Delivery(serial, response(f"v{serial}", *resources))


GOOD, NEWER = delivery(2, "a"), delivery(4, "a", "b")
B = NEWER.response.by_name["b"].key


def with_both(trial: int | None = None) -> Subscription:
    """Return a subscription that has accepted GOOD and received NEWER, with a stream for a trial of it."""
    subscription = Subscription(CLUSTER)
    subscription.arrived(GOOD)
    subscription.accept(EnvoyOffer(GOOD))
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
    assert Subscription(CLUSTER).choose(1) is None


def test_the_latest_is_sent_unless_something_is_wrong_with_it() -> None:
    assert with_both().choose(1) is NEWER


def test_a_rejected_resource_is_withheld_alone() -> None:
    subscription = with_both()
    subscription.rejected.add(B, "it is bad")
    assert subscription.choose(1) is NEWER
    assert subscription.withheld() == [B]
    offer = subscription.offer(NEWER, subscription.rejected, {})
    assert set(offer.resources) == {"a"}
    assert offer is subscription.offer(NEWER, subscription.rejected, {})
    subscription.arrived(delivery(6, "a"))
    assert subscription.withheld() == []


def test_what_an_envoy_accepts_of_a_response_is_what_is_remembered() -> None:
    subscription = Subscription(CLUSTER)
    subscription.arrived(NEWER)
    assert subscription.accept(EnvoyOffer(NEWER, None, [B]))
    assert subscription.accepted is not None
    assert set(subscription.accepted.response.by_name) == {"a"}
    assert subscription.good_version.startswith("v4+")
    assert subscription.accept(EnvoyOffer(NEWER))
    assert subscription.accepted is NEWER
    assert not subscription.accept(EnvoyOffer(GOOD))
    assert not subscription.accept(EnvoyOffer(delivery(6, "b", "a")))
    assert subscription.good_version == "v6"


def test_a_suspected_response_is_only_for_the_stream_of_its_trial() -> None:
    subscription = with_both(trial=7)
    subscription.suspected.add(NEWER)
    assert subscription.choose(1) is GOOD
    assert subscription.choose(7) is NEWER
    subscription.answered(NEWER, applied=True)
    assert subscription.trial is None
    assert subscription.choose(1) is NEWER


def test_a_deadly_response_is_for_nobody() -> None:
    subscription = with_both()
    subscription.deadly.add(NEWER)
    assert subscription.choose(1) is GOOD


@pytest.mark.parametrize(("verdict", "sent"), [("suspected", True), ("deadly", False)])
def test_without_an_accepted_response_only_a_deadly_one_is_withheld(verdict: str, sent: bool) -> None:
    subscription = Subscription(CLUSTER)
    subscription.arrived(GOOD)
    getattr(subscription, verdict).add(GOOD)
    assert (subscription.choose(1) is GOOD) is sent


def test_versions_that_it_knows() -> None:
    subscription = with_both()
    assert [subscription.knows(version) for version in ("", "v2", "v4", "v6")] == [True, True, True, False]
    for number in range(40):
        subscription.sent(f"s{number}")
    assert [subscription.knows(version) for version in ("s39", "s8", "s7")] == [True, True, False]


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
    assert not subscription.view().withheld
    subscription.rejected.add(B, "it is bad")
    view = subscription.view()
    assert (view.accepted, view.latest, view.open, view.names, view.withheld) == ("v2", "v4", True, 0, True)


def test_its_memory_is_restored_as_it_was() -> None:
    subscription = with_both()
    subscription.names = ("a",)
    subscription.rejected.add(B, "it is bad")
    saved = subscription.snapshot(held=[GOOD.response.by_name["a"]])
    assert [resource.name for resource in held_of(saved)] == ["a"]
    restored = Subscription(CLUSTER, saved.names)
    restored.restore(saved, 5)
    assert restored.snapshot(held_of(saved)) == saved
    assert restored.withheld() == [B]
    assert restored.accepted is not None
    assert restored.latest is not None
    assert (restored.accepted.serial, restored.latest.serial) == (5, 6)


def test_the_verdict_of_an_earlier_kumadp_on_a_content_is_one_on_its_new_resources() -> None:
    saved = with_both().snapshot()
    earlier = msgspec.structs.replace(saved, rejected=(NEWER.response.digest,))
    restored = Subscription(CLUSTER)
    restored.restore(earlier, 1)
    assert restored.withheld() == [B]
    assert restored.snapshot().rejected == ()
    again = Subscription(CLUSTER)
    again.restore(msgspec.structs.replace(earlier, latest=None), 1)
    assert again.withheld() == []
    again.arrived(NEWER)
    assert again.withheld() == [B]


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
