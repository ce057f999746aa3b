"""Requests on one stream to the control plane: what they carry, and when none may be sent."""

from __future__ import annotations

from kumadp.relay.messages import CLUSTER, ENDPOINTS, Request, Response, encode_response
from kumadp.relay.offer import Delivery, EnvoyOffer
from kumadp.relay.subscription import Subscription
from kumadp.relay.upstream_requests import UpstreamRequests
from tests.relay.harness import NODE


def opened(*subscriptions: Subscription) -> UpstreamRequests:
    requests = UpstreamRequests(NODE)
    requests.reset(subscriptions, is_open=True)
    return requests


def delivery(version: str, nonce: str) -> Delivery:
    return Delivery(1, Response.parse(encode_response(CLUSTER, version, [], nonce)))


def parsed(requests: UpstreamRequests, subscription: Subscription) -> list[Request]:
    return [sent.request for sent in requests.subscribe(subscription)]


def test_the_first_request_of_a_stream_has_the_node() -> None:
    clusters, endpoints = Subscription(CLUSTER), Subscription(ENDPOINTS, ("backend",))
    requests = opened(clusters, endpoints)
    assert parsed(requests, clusters) == [Request(CLUSTER, node=NODE)]
    assert parsed(requests, endpoints) == [Request(ENDPOINTS, names=("backend",))]
    requests.reset((clusters, endpoints), is_open=True)
    assert parsed(requests, endpoints) == [Request(ENDPOINTS, names=("backend",), node=NODE)]


def test_nothing_is_sent_without_a_stream() -> None:
    subscription = Subscription(CLUSTER)
    assert parsed(UpstreamRequests(NODE), subscription) == []


def test_equal_names_are_requested_once() -> None:
    subscription = Subscription(ENDPOINTS, ("a",))
    requests = opened(subscription)
    assert len(parsed(requests, subscription)) == 1
    assert parsed(requests, subscription) == []
    subscription.names = ("a", "b")
    assert [request.names for request in parsed(requests, subscription)] == [("a", "b")]


def test_names_wait_for_the_answer_to_an_open_response() -> None:
    subscription = Subscription(CLUSTER)
    requests = opened(subscription)
    parsed(requests, subscription)
    subscription.arrived(delivery("v1", "n1"))
    subscription.names = ("a",)
    assert parsed(requests, subscription) == []
    (answer,) = requests.answer(subscription, "v1")
    assert answer.request == Request(CLUSTER, "v1", names=("a",), nonce="n1")
    assert parsed(requests, subscription) == []


def test_a_response_is_answered_once() -> None:
    subscription = Subscription(CLUSTER)
    requests = opened(subscription)
    subscription.arrived(delivery("v1", "n1"))
    assert len(requests.answer(subscription, "", b"\x08\x01")) == 1
    assert requests.answer(subscription, "v1") == []


def test_an_open_response_of_the_previous_stream_is_not_answered() -> None:
    subscription = Subscription(CLUSTER)
    requests = opened(subscription)
    subscription.arrived(delivery("v1", "n1"))
    subscription.accept(EnvoyOffer(delivery("v1", "n1")))
    requests.reset((subscription,), is_open=True)
    assert requests.answer(subscription, "v1") == []
    # It subscribes with the version last accepted, and without a nonce.
    assert parsed(requests, subscription) == [Request(CLUSTER, "v1", node=NODE)]
