"""One type on one Envoy's stream: names, the response in flight, its answer, and what is sent next."""

from __future__ import annotations

import pytest

from kumadp.relay.envoy_streams import WITHHELD, EnvoyStream, Exchange
from kumadp.relay.messages import CLUSTER, ENDPOINTS, SECRET, BadMessage, Response, encode_response, encode_status
from kumadp.relay.protobuf import field_bytes, fields
from kumadp.relay.subscription import Delivery

ERROR = encode_status(13, "no")


def delivery(serial: int, *names: str) -> Delivery:
    """Return a response with resources of these names."""
    resources = [field_bytes(1, ENDPOINTS.encode()) + field_bytes(2, field_bytes(1, name.encode())) for name in names]
    return Delivery(serial, Response.parse(encode_response(ENDPOINTS, f"v{serial}", resources)))


def exchange(*names: str) -> Exchange:
    return Exchange(names, wildcard=not names)


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
    sent = delivery(1, "a")
    assert Response.parse(sent.response.raw + clusters.send(sent, "7")).nonce == "7"
    assert stream.in_flight() == {CLUSTER: sent}
    clusters.answered("v1", b"")
    assert stream.in_flight() == {}
    assert clusters.answer is not None
    assert (clusters.answer.taken, clusters.took) == (True, True)


def test_nothing_is_in_flight_if_no_answer_can_be_expected() -> None:
    stream = EnvoyStream(1, 0, fresh=True)
    stream.exchanges[ENDPOINTS] = unsubscribed = exchange("a")
    unsubscribed.send(delivery(1, "a"), "1")
    unsubscribed.request(())
    stream.exchanges[SECRET] = withheld = exchange("key")
    withheld.send(Delivery(0, WITHHELD), "2")
    assert stream.in_flight() == {}


@pytest.mark.parametrize(("version", "error", "rejected"), [("v0", ERROR, True), ("v0", b"", False)])
def test_another_version_without_an_error_is_neither_accepted_nor_rejected(
    version: str, error: bytes, rejected: bool
) -> None:
    clusters, sent = exchange(), delivery(1, "a")
    clusters.send(sent, "1")
    clusters.answered(version, error)
    assert not clusters.took
    assert (sent in clusters.refused) is rejected


def test_a_withheld_secret_is_no_answer() -> None:
    secrets = exchange("key")
    secrets.send(Delivery(0, WITHHELD), "1")
    secrets.answered("", ERROR)
    assert secrets.answer is None
    assert not secrets.waiting


def test_the_accepted_response_was_tried_once_envoy_has_answered_it() -> None:
    clusters, accepted = exchange(), delivery(1, "a")
    assert not clusters.tried(accepted)
    clusters.send(accepted, "1")
    clusters.answered("v0", ERROR)
    assert clusters.tried(accepted)
    assert not clusters.tried(None)


def test_only_newer_responses_are_sent() -> None:
    endpoints = exchange("a", "b")
    old, new = delivery(1, "a"), delivery(2, "b")
    assert endpoints.needs(old, set(), live=False)
    endpoints.send(new, "1")
    endpoints.answered("v2", b"")
    assert not endpoints.needs(old, set(), live=False)
    assert not endpoints.needs(new, set(), live=False)
    assert endpoints.needs(delivery(3, "a"), set(), live=True)


def test_the_same_response_is_sent_again_for_new_names_that_it_holds() -> None:
    endpoints, sent = exchange("a"), delivery(1, "a", "b")
    endpoints.send(sent, "1")
    endpoints.answered("v1", b"")
    assert endpoints.needs(sent, {"b"}, live=True)
    assert not endpoints.needs(sent, {"c"}, live=True)


@pytest.mark.parametrize(("live", "sent"), [(False, True), (True, False)])
def test_an_older_response_is_only_for_a_starting_envoy_that_rejected_the_newer_one(live: bool, sent: bool) -> None:
    clusters = exchange()
    clusters.send(delivery(2, "b"), "1")
    clusters.answered("v0", ERROR)
    assert clusters.needs(delivery(1, "a"), set(), live=live) is sent


def test_a_withheld_secret_cannot_be_decoded_by_envoy() -> None:
    (resource,) = WITHHELD.resources
    value = next(resource[start:end] for number, start, end in fields(resource) if number == 2)
    with pytest.raises(BadMessage):
        list(fields(value))
