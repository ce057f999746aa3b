"""One type on one Envoy's stream: names, the response in flight, its answer, and what is sent next."""

from __future__ import annotations

import pytest

from kumadp.relay.envoy_streams import EnvoyStream
from kumadp.relay.exchange import NO_SECRET, WITHHELD, Exchange
from kumadp.relay.messages import CLUSTER, ENDPOINTS, SECRET, BadMessage, Response, encode_response, encode_status
from kumadp.relay.offer import Delivery, EnvoyOffer
from kumadp.relay.protobuf import field_bytes, fields

ERROR = encode_status(13, "no")


def delivery(serial: int, *names: str) -> Delivery:
    """Return a response with resources of these names."""
    resources = [field_bytes(1, ENDPOINTS.encode()) + field_bytes(2, field_bytes(1, name.encode())) for name in names]
    return Delivery(serial, Response.parse(encode_response(ENDPOINTS, f"v{serial}", resources)))


def exchange(*names: str) -> Exchange:
    return Exchange(names, wildcard=not names, partial=bool(names))


def take(exchange: Exchange, offer: EnvoyOffer) -> None:
    """Send what is needed of an offer, and accept it."""
    names = exchange.needs(offer)
    assert names is not None
    exchange.send(offer, names, "1")
    exchange.answered(offer.version, b"", ())


def test_a_request_returns_the_new_names_and_ends_the_wildcard() -> None:
    wildcard = exchange()
    assert wildcard.subscribed
    assert wildcard.request(("a", "b")) == {"a", "b"}
    assert wildcard.request(("b", "c")) == {"c"}
    assert wildcard.request(()) == set()
    assert not wildcard.subscribed


def test_a_response_is_in_flight_until_it_is_answered() -> None:
    stream, clusters = EnvoyStream(1, 0, fresh=True), exchange()
    stream.exchanges[CLUSTER] = clusters
    sent = EnvoyOffer(delivery(2, "a"))
    assert Response.parse(sent.message(("a",)) + clusters.send(sent, ("a",), "7")).nonce == "7"
    assert stream.in_flight() == {CLUSTER: sent}
    clusters.answered("v2", b"", ())
    assert stream.in_flight() == {}
    assert clusters.answer is not None
    assert (clusters.answer.taken, clusters.took) == (True, True)


def test_nothing_is_in_flight_if_no_answer_can_be_expected() -> None:
    stream = EnvoyStream(1, 0, fresh=True)
    stream.exchanges[ENDPOINTS] = unsubscribed = exchange("a")
    unsubscribed.send(EnvoyOffer(delivery(2, "a")), ("a",), "1")
    unsubscribed.request(())
    stream.exchanges[SECRET] = withheld = exchange("key")
    withheld.send(NO_SECRET, (), "2")
    assert stream.in_flight() == {}


@pytest.mark.parametrize(("error", "rejected"), [(ERROR, True), (b"", False)])
def test_another_version_without_an_error_is_neither_accepted_nor_rejected(error: bytes, rejected: bool) -> None:
    clusters, sent = exchange(), EnvoyOffer(delivery(2, "a"))
    clusters.send(sent, ("a",), "1")
    clusters.answered("v0", error, ())
    assert not clusters.took
    assert (clusters.rejection is not None) is rejected
    assert bool(clusters.narrowing.refused) is rejected


def test_a_withheld_secret_is_no_answer() -> None:
    secrets = exchange("key")
    secrets.send(NO_SECRET, (), "1")
    secrets.answered("", ERROR, ())
    assert secrets.answer is None
    assert not secrets.waiting


def test_all_clusters_are_sent_if_there_is_any_change_and_nothing_otherwise() -> None:
    clusters = exchange()
    assert clusters.needs(EnvoyOffer(delivery(2))) == ()
    take(clusters, EnvoyOffer(delivery(2, "a", "b")))
    assert clusters.needs(EnvoyOffer(delivery(4, "b", "a"))) is None
    assert clusters.needs(EnvoyOffer(delivery(4, "b", "c"))) == ("b", "c")
    assert clusters.needs(EnvoyOffer(delivery(4))) == ()


def test_of_endpoints_only_changed_and_newly_requested_ones_are_sent() -> None:
    endpoints = exchange("a", "b")
    take(endpoints, EnvoyOffer(delivery(2, "a", "b", "c")))
    again = EnvoyOffer(delivery(4, "a", "b", "c"))
    assert endpoints.needs(again) is None
    assert endpoints.request(("a", "b", "c")) == {"c"}
    assert endpoints.needs(again) == ("c",)
    endpoints.request(("b", "c"))
    endpoints.request(("a", "b", "c"))
    assert endpoints.needs(again) == ("a", "c")


def test_endpoints_of_a_changed_cluster_are_sent_although_they_are_the_same() -> None:
    endpoints, offer = exchange("a", "b"), EnvoyOffer(delivery(2, "a", "b"))
    take(endpoints, offer)
    endpoints.expect(["b", "other"])
    assert endpoints.needs(offer) == ("b",)
    take(endpoints, offer)
    assert endpoints.needs(offer) is None


def test_endpoints_are_sent_again_after_a_rejection() -> None:
    endpoints, first = exchange("a", "b"), EnvoyOffer(delivery(2, "a", "b"))
    take(endpoints, first)
    endpoints.request(("a", "b", "c"))
    endpoints.expect(["b"])
    second = EnvoyOffer(delivery(4, "a", "b", "c"))
    assert endpoints.needs(second) == ("b", "c")
    endpoints.send(second, ("b", "c"), "2")
    endpoints.answered("v2", encode_status(13, "c is bad"), ())
    assert endpoints.narrowing.refused.keys() == {second.resources["c"].key}
    assert endpoints.needs(EnvoyOffer(second.base, first.base, endpoints.narrowing.refused)) == ("b",)


def test_a_rejected_response_of_which_nothing_can_be_withheld_is_not_sent_again() -> None:
    clusters, empty = exchange(), EnvoyOffer(delivery(2))
    clusters.send(empty, (), "1")
    clusters.answered("", ERROR, ())
    assert clusters.needs(empty) is None
    assert clusters.needs(EnvoyOffer(delivery(4))) == ()


def test_a_jam_is_no_rejection_if_nothing_can_be_withheld() -> None:
    clusters, known = exchange(), delivery(2, "a")
    clusters.send(EnvoyOffer(known), ("a",), "1")
    assert not clusters.reject("jammed", ERROR, known, by_guard=True)
    assert clusters.waiting
    assert clusters.reject("jammed", ERROR, (), by_guard=True)
    assert not clusters.waiting


def test_an_offer_without_changes_is_taken_as_accepted() -> None:
    clusters = exchange()
    take(clusters, EnvoyOffer(delivery(2, "a")))
    same = EnvoyOffer(delivery(4, "a"))
    clusters.skip(same)
    assert clusters.sent is same
    assert clusters.answer is not None
    assert (clusters.answer.version, clusters.answer.taken) == ("v4", True)


def test_a_withheld_secret_cannot_be_decoded_by_envoy() -> None:
    (resource,) = WITHHELD.resources
    value = next(resource[start:end] for number, start, end in fields(resource) if number == 2)
    with pytest.raises(BadMessage):
        list(fields(value))
