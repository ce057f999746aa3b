"""Delta towards the control plane: what goes up for each request, and the whole set for what comes down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from kumadp.relay.delta import LOST, Delta, Memory
from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.messages import CLUSTER, ENDPOINTS, LISTENER, SECRET, BadMessage, Outline, Request, encode_status
from kumadp.relay.snapshot import TypeSnapshot
from tests.relay.delta_harness import (
    NODE,
    any_of,
    contents,
    delta_response,
    parsed,
    sotw,
    version_of,
)

if TYPE_CHECKING:
    from kumadp.relay.dialect import Arrival

LARGEST = 1 << 20


class Stream:
    """One stream, with a state machine that answers each response unless the test does."""

    def __init__(self, *types: TypeSnapshot, largest: int = LARGEST) -> None:
        self.delta = Delta(Memory(types), largest=largest)
        self.names: dict[str, tuple[str, ...]] = {}
        self.nonce: dict[str, str] = {}
        self.node = NODE

    def send(self, type_url: str, *names: str, nonce: str = "", error: bytes = b"") -> list[Any]:
        """Send a request of the state machine; return what goes up."""
        node, self.node = self.node, b""
        self.names[type_url] = names
        return [parsed(data) for data in self.delta.encode(Request(type_url, "", node, names, nonce, error))]

    def come(
        self, type_url: str, nonce: str, resources: dict[str, str] | None = None, removed: tuple[str, ...] = ()
    ) -> Arrival:
        """A response comes; it must not be answered at once."""
        arrival = self.delta.read(delta_response(type_url, nonce, resources, removed))
        assert self.delta.take(arrival) == ()
        return arrival

    def whole(self, *arguments: Any) -> dict[str, str]:
        """A response comes and is accepted; return the whole set that the state machine gets."""
        arrival = self.come(*arguments)
        assert arrival.response is not None
        self.accept(arrival)
        return contents(arrival.response)

    def accept(self, arrival: Arrival) -> None:
        (ack,) = self.send(arrival.outline.type_url, *self.names[arrival.outline.type_url], nonce=arrival.outline.nonce)
        assert (ack.response_nonce, ack.HasField("error_detail")) == (arrival.outline.nonce, False)

    def quiet(self, *arguments: Any) -> Any:
        """A response that changes nothing comes; return the answer that goes up at once."""
        arrival = self.delta.read(delta_response(*arguments))
        (answer,) = self.delta.take(arrival)
        assert arrival.response is None
        assert not arrival.refused
        return parsed(answer)


def remembered(type_url: str, resources: dict[str, str], *names: str, latest: bytes | None = None) -> TypeSnapshot:
    return TypeSnapshot(type_url, names, sotw(type_url, resources), latest)


def test_the_method_is_the_one_of_delta() -> None:
    delta = Delta(largest=LARGEST)
    assert delta.method.endswith("/DeltaAggregatedResources")
    assert delta.protocol is XdsProtocol.DELTA


# The first request of a type


def test_all_of_a_type_is_requested_without_names() -> None:
    (request,) = Stream().send(CLUSTER)
    assert request.type_url == CLUSTER
    assert list(request.resource_names_subscribe) == list(request.resource_names_unsubscribe) == []
    assert dict(request.initial_resource_versions) == {}
    assert request.response_nonce == ""


def test_versions_follow_from_the_bytes_that_envoy_accepted() -> None:
    (request,) = Stream(remembered(CLUSTER, {"a": "1", "b": "2"})).send(CLUSTER)
    assert dict(request.initial_resource_versions) == {"a": version_of("a", "1"), "b": version_of("b", "2")}


def test_only_versions_of_requested_names_are_named() -> None:
    (request,) = Stream(remembered(ENDPOINTS, {"a": "1", "gone": "2"}, "a", "b")).send(ENDPOINTS, "a", "b")
    assert list(request.resource_names_subscribe) == ["a", "b"]
    assert dict(request.initial_resource_versions) == {"a": version_of("a", "1")}


def test_a_response_that_was_not_accepted_is_not_named() -> None:
    saved = TypeSnapshot(CLUSTER, latest=sotw(CLUSTER, {"bad": ""}))
    (request,) = Stream(saved).send(CLUSTER)
    assert dict(request.initial_resource_versions) == {}


def test_memory_that_cannot_be_read_is_not_named() -> None:
    saved = TypeSnapshot(CLUSTER, accepted=sotw(CLUSTER, {"a": ""})[:-1] + b"\xff\xff")
    (request,) = Stream(saved).send(CLUSTER)
    assert dict(request.initial_resource_versions) == {}


def test_versions_that_no_grpc_server_takes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kumadp.relay.delta.LARGEST_VERSIONS", 2 * 64)
    stream = Stream(remembered(CLUSTER, {"a": "1", "b": "2"}))
    (request,) = stream.send(CLUSTER)
    assert dict(request.initial_resource_versions) == {}
    # So the control plane sends all, and removes what is gone in between by not sending it.
    assert stream.whole(CLUSTER, "1", {"a": "1"}) == {"a": "1"}


def test_every_request_has_the_node() -> None:
    stream = Stream()
    requests = stream.send(CLUSTER) + stream.send(ENDPOINTS, "a") + stream.send(ENDPOINTS, "b")
    stream.come(CLUSTER, "1")
    requests += stream.send(CLUSTER, nonce="1")
    requests.append(stream.quiet(CLUSTER, "2"))
    assert len(requests) == 5
    assert {request.node.id for request in requests} == {"node"}


def test_memory_that_was_read_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = remembered(CLUSTER, {"a": "1"})
    former = Memory((saved,))
    monkeypatch.setattr("kumadp.relay.delta.ResourceSet.parse", None)
    again = Memory((saved,), former)
    assert again.sets == former.sets
    with pytest.raises(TypeError):
        Memory((remembered(CLUSTER, {"a": "1"}),), former)


# Names


def test_names_change_by_their_difference_with_an_empty_nonce() -> None:
    stream = Stream()
    stream.send(ENDPOINTS, "a", "b")
    stream.whole(ENDPOINTS, "1", {"a": "", "b": ""})
    (request,) = stream.send(ENDPOINTS, "b", "c", nonce="1")
    assert list(request.resource_names_subscribe) == ["c"]
    assert list(request.resource_names_unsubscribe) == ["a"]
    assert request.response_nonce == ""
    assert dict(request.initial_resource_versions) == {}


def test_names_that_are_equal_in_another_order_are_not_requested() -> None:
    stream = Stream()
    stream.send(ENDPOINTS, "a", "b")
    assert stream.send(ENDPOINTS, "b", "a") == []


def test_an_answer_with_other_names_is_two_requests() -> None:
    stream = Stream()
    stream.send(ENDPOINTS, "a")
    stream.come(ENDPOINTS, "1", {"a": ""})
    answer, change = stream.send(ENDPOINTS, "a", "b", nonce="1")
    assert (answer.response_nonce, list(answer.resource_names_subscribe)) == ("1", [])
    assert (change.response_nonce, list(change.resource_names_subscribe)) == ("", ["b"])


def test_all_and_names_are_exchanged() -> None:
    stream = Stream()
    stream.send(LISTENER)
    (request,) = stream.send(LISTENER, "a")
    assert (list(request.resource_names_subscribe), list(request.resource_names_unsubscribe)) == (["a"], ["*"])
    (request,) = stream.send(LISTENER)
    assert (list(request.resource_names_subscribe), list(request.resource_names_unsubscribe)) == (["*"], ["a"])


def test_what_is_not_requested_any_more_leaves_the_set_with_the_next_change() -> None:
    stream = Stream()
    stream.send(ENDPOINTS, "a", "b")
    stream.whole(ENDPOINTS, "1", {"a": "", "b": ""})
    stream.send(ENDPOINTS, "b", nonce="1")
    assert stream.whole(ENDPOINTS, "2", {"b": "new"}) == {"b": "new"}


def test_what_is_requested_again_and_not_sent_any_more_leaves_the_set() -> None:
    """A control plane forgets what was unsubscribed: what it has no more is then not removed either."""
    stream = Stream(remembered(ENDPOINTS, {"a": "1", "b": "2"}, "a", "b"))
    stream.send(ENDPOINTS, "a", "b")
    stream.send(ENDPOINTS, "a")
    (request,) = stream.send(ENDPOINTS, "a", "b")
    assert list(request.resource_names_subscribe) == ["b"]
    assert stream.whole(ENDPOINTS, "1", {"a": "new"}) == {"a": "new"}


def test_what_is_requested_again_and_sent_again_is_in_the_set() -> None:
    stream = Stream(remembered(ENDPOINTS, {"a": "1", "b": "2"}, "a", "b"))
    stream.send(ENDPOINTS, "a", "b")
    stream.send(ENDPOINTS, "a")
    stream.send(ENDPOINTS, "a", "b")
    assert stream.whole(ENDPOINTS, "1", {"b": "2"}) == {"a": "1", "b": "2"}


def test_what_is_unsubscribed_while_a_response_is_read_does_not_come_back() -> None:
    stream = Stream()
    stream.send(ENDPOINTS, "a", "b")
    stream.whole(ENDPOINTS, "1", {"a": "1", "b": "1"})
    # Large messages are read in a thread.
    arrival = stream.delta.read(delta_response(ENDPOINTS, "2", {"a": "2"}))
    stream.send(ENDPOINTS, "a")
    assert stream.delta.take(arrival) == ()
    stream.accept(arrival)
    # It is gone at the control plane, which does not send it.
    stream.send(ENDPOINTS, "a", "b")
    assert stream.whole(ENDPOINTS, "3", {"a": "3"}) == {"a": "3"}


def test_what_comes_after_it_was_unsubscribed_is_ignored() -> None:
    stream = Stream()
    stream.send(ENDPOINTS, "a", "b")
    stream.whole(ENDPOINTS, "1", {"a": "", "b": ""})
    stream.send(ENDPOINTS, "b", nonce="1")
    assert stream.quiet(ENDPOINTS, "2", {"a": "late"}).response_nonce == "2"


# Responses


def test_the_state_machine_gets_the_whole_set() -> None:
    stream = Stream()
    stream.send(CLUSTER)
    assert stream.whole(CLUSTER, "1", {"a": "1", "b": "1", "c": "1"}) == {"a": "1", "b": "1", "c": "1"}
    assert stream.whole(CLUSTER, "2", {"b": "2"}) == {"a": "1", "b": "2", "c": "1"}
    assert stream.whole(CLUSTER, "3", {"d": "1"}, ("a", "never there")) == {"b": "2", "c": "1", "d": "1"}


def test_equal_sets_have_equal_versions_in_any_order() -> None:
    versions = []
    for resources in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, {"a": "1", "b": "3"}):
        stream = Stream()
        stream.send(CLUSTER)
        arrival = stream.come(CLUSTER, "1", resources)
        assert arrival.response is not None
        versions.append(arrival.response.version)
    assert versions[0] == versions[1] != versions[2]


def test_an_empty_set_is_news_to_an_envoy_that_has_nothing() -> None:
    stream = Stream()
    stream.send(LISTENER)
    assert stream.whole(LISTENER, "1") == {}
    assert stream.quiet(LISTENER, "2").response_nonce == "2"


def test_after_a_reconnect_what_is_equal_is_answered_at_once_and_what_differs_is_added() -> None:
    stream = Stream(remembered(CLUSTER, {"a": "1", "b": "1"}), remembered(LISTENER, {"l": "1"}))
    stream.send(CLUSTER)
    stream.send(LISTENER)
    answer = stream.quiet(CLUSTER, "1")
    assert (answer.type_url, answer.response_nonce) == (CLUSTER, "1")
    assert stream.whole(LISTENER, "2", {"m": "1"}, ("l",)) == {"m": "1"}
    assert stream.whole(CLUSTER, "3", {}, ("a",)) == {"b": "1"}


def test_endpoints_that_are_sent_again_never_reach_envoy() -> None:
    """Not after a change of clusters either: the state machine gives Envoy those of the changed ones from memory."""
    stream = Stream()
    stream.send(CLUSTER)
    stream.send(ENDPOINTS, "a")
    stream.whole(ENDPOINTS, "1", {"a": "1"})
    stream.whole(CLUSTER, "c", {"a": "1"})
    answer = stream.quiet(ENDPOINTS, "2", {"a": "1"})
    assert (answer.response_nonce, answer.HasField("error_detail")) == ("2", False)
    # It was answered: nothing is left for the state machine to answer.
    assert stream.send(ENDPOINTS, "a", nonce="2") == []


def test_what_envoy_rejected_is_news_again() -> None:
    stream = Stream(remembered(CLUSTER, {"a": "1"}))
    stream.send(CLUSTER)
    stream.come(CLUSTER, "1", {"a": "bad"})
    (nack,) = stream.send(CLUSTER, nonce="1", error=encode_status(13, "why"))
    assert (nack.response_nonce, nack.error_detail.code, nack.error_detail.message) == ("1", 13, "why")
    # The control plane counts it as sent, and sends it again with others, or back as it was.
    assert stream.come(CLUSTER, "2", {"a": "bad"}).response is not None
    stream.send(CLUSTER, nonce="2", error=encode_status(13, "why"))
    assert stream.whole(CLUSTER, "3", {"a": "1"}) == {"a": "1"}
    assert stream.quiet(CLUSTER, "4", {"a": "1"}).response_nonce == "4"


def test_an_equal_answer_is_news_where_the_latest_response_was_not_accepted() -> None:
    stream = Stream(remembered(CLUSTER, {"a": "1"}, latest=sotw(CLUSTER, {"a": "bad"})))
    (request,) = stream.send(CLUSTER)
    assert dict(request.initial_resource_versions) == {"a": version_of("a", "1")}
    assert stream.whole(CLUSTER, "1") == {"a": "1"}


def test_what_was_rejected_is_acknowledged_once_envoy_accepts_it() -> None:
    stream = Stream()
    stream.send(LISTENER)
    arrival = stream.come(LISTENER, "1", {"in": ""})
    assert arrival.response is not None
    version = arrival.response.version
    (nack,) = stream.send(LISTENER, nonce="1", error=encode_status(13, "cannot bind"))
    assert nack.error_detail.message == "cannot bind"
    # Neither is a request with another version.
    assert stream.send(LISTENER, nonce="1") == []
    messages = stream.delta.encode(Request(LISTENER, version, b"", (), "1", b""))
    (ack,) = [parsed(data) for data in messages]
    assert (ack.response_nonce, ack.HasField("error_detail")) == ("1", False)
    assert stream.delta.encode(Request(LISTENER, version, b"", (), "1", b"")) == ()
    # It is what Envoy has: sent again, it is no news.
    assert stream.quiet(LISTENER, "2", {"in": ""}).response_nonce == "2"


def test_a_request_that_is_no_answer_does_not_answer() -> None:
    stream = Stream()
    stream.send(CLUSTER)
    stream.come(CLUSTER, "7", {"a": ""})
    assert stream.send(CLUSTER, nonce="6") == []
    assert [answer.response_nonce for answer in stream.send(CLUSTER, nonce="7")] == ["7"]
    assert stream.send(CLUSTER, nonce="7") == []


# Secrets


def test_a_removed_secret_stays_while_it_is_requested() -> None:
    stream = Stream()
    stream.send(SECRET, "identity", "trust")
    stream.whole(SECRET, "1", {"identity": "1", "trust": "1"})
    assert stream.quiet(SECRET, "2", {}, ("identity",)).response_nonce == "2"
    assert stream.whole(SECRET, "3", {"trust": "2"}, ("identity",)) == {"identity": "1", "trust": "2"}
    stream.send(SECRET, "trust", nonce="3")
    assert stream.whole(SECRET, "4", {"trust": "3"}, ("identity",)) == {"trust": "3"}


def test_other_types_are_removed_when_the_control_plane_does() -> None:
    stream = Stream()
    stream.send(ENDPOINTS, "a", "b")
    stream.whole(ENDPOINTS, "1", {"a": "", "b": ""})
    assert stream.whole(ENDPOINTS, "2", {}, ("a",)) == {"b": ""}


# Silence


def test_an_answer_is_expected_only_of_a_type_without_memory() -> None:
    stream = Stream(remembered(CLUSTER, {"a": "1"}))
    expected = {}
    for type_url, names in ((CLUSTER, ()), (ENDPOINTS, ("a",))):
        stream.send(type_url, *names)
        expected[type_url] = stream.delta.expects_answer(Request(type_url, names=names))
    assert expected == {CLUSTER: False, ENDPOINTS: True}
    stream.whole(ENDPOINTS, "1", {"a": ""})
    stream.send(ENDPOINTS, "a", "unknown", nonce="1")
    assert not stream.delta.expects_answer(Request(ENDPOINTS))


# What cannot be taken


def test_a_type_that_was_not_requested_changes_nothing() -> None:
    stream = Stream()
    arrival = stream.come(CLUSTER, "1", {"a": ""})
    assert (arrival.response, arrival.refused) == (None, "")
    (request,) = stream.send(CLUSTER)
    assert request.response_nonce == ""


def test_a_set_that_is_too_large_is_rejected_and_so_is_what_builds_on_it() -> None:
    stream = Stream(largest=400)
    stream.send(CLUSTER)
    stream.whole(CLUSTER, "1", {"a": "x" * 100})
    arrival = stream.come(CLUSTER, "2", {"b": "x" * 100, "c": "x" * 100})
    assert arrival.response is None
    assert "at most 400 are accepted" in arrival.refused
    (nack,) = stream.send(CLUSTER, nonce="2", error=encode_status(8, arrival.refused))
    assert (nack.response_nonce, nack.error_detail.code) == ("2", 8)
    # The control plane counts b and c as sent: without them the set would be a wrong one.
    assert not arrival.outdated
    later = stream.come(CLUSTER, "3", {"a": "y"})
    assert (later.refused, later.outdated) == (LOST, True)
    # Other types are not concerned.
    stream.send(LISTENER)
    assert stream.whole(LISTENER, "4", {"l": ""}) == {"l": ""}


def test_a_response_that_was_dropped_unread_is_answered_and_nothing_builds_on_it() -> None:
    stream = Stream()
    stream.send(CLUSTER)
    stream.delta.drop(Outline(CLUSTER, "", "1"))
    (nack,) = stream.send(CLUSTER, nonce="1", error=encode_status(8, "too large"))
    assert nack.response_nonce == "1"
    assert stream.come(CLUSTER, "2", {"a": ""}).refused == LOST


@pytest.mark.parametrize("accepted", [True, False])
def test_a_change_of_names_does_not_acknowledge_a_dropped_response(accepted: bool) -> None:
    stream, version = Stream(), ""
    stream.send(ENDPOINTS, "a")
    if accepted:
        arrival = stream.come(ENDPOINTS, "1", {"a": "1"})
        stream.accept(arrival)
        assert arrival.response is not None
        version = arrival.response.version
    stream.delta.drop(Outline(ENDPOINTS, "", "2"))
    stream.send(ENDPOINTS, "a", nonce="2", error=encode_status(8, "too large"))
    messages = stream.delta.encode(Request(ENDPOINTS, version, b"", ("a", "b"), "2", b""))
    (request,) = [parsed(data) for data in messages]
    assert (list(request.resource_names_subscribe), request.response_nonce) == (["b"], "")


def test_a_new_stream_has_lost_nothing() -> None:
    saved = remembered(CLUSTER, {"a": "1"})
    stream = Stream(saved)
    stream.send(CLUSTER)
    stream.delta.drop(Outline(CLUSTER, "", "1"))
    stream = Stream(saved)
    stream.send(CLUSTER)
    assert stream.whole(CLUSTER, "1", {"b": ""}) == {"a": "1", "b": ""}


def test_a_resource_without_a_name_is_rejected_as_a_fault_of_the_response() -> None:
    stream = Stream()
    stream.send(CLUSTER)
    nameless = b"\x12" + bytes([len(any_of(CLUSTER, "a")) + 2, 0x12, len(any_of(CLUSTER, "a"))]) + any_of(CLUSTER, "a")
    arrival = stream.delta.read(nameless + delta_response(CLUSTER, "1"))
    assert arrival.refused == "a resource has no name"
    assert stream.delta.take(arrival) == ()
    (nack,) = stream.send(CLUSTER, nonce="1", error=encode_status(13, arrival.refused))
    assert nack.response_nonce == "1"


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x0a\x05abc", delta_response("", "1", {"a": ""})])
def test_a_message_that_is_none_changes_nothing(data: bytes) -> None:
    stream = Stream()
    stream.send(CLUSTER)
    with pytest.raises(BadMessage):
        stream.delta.read(data)
    assert stream.whole(CLUSTER, "1", {"a": ""}) == {"a": ""}


def test_more_resources_than_any_mesh_has_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kumadp.relay.delta_messages.MOST_RESOURCES", 3)
    monkeypatch.setattr("kumadp.relay.resource_set.MOST_RESOURCES", 3)
    stream = Stream()
    stream.send(CLUSTER)
    with pytest.raises(BadMessage, match="more than 3"):
        stream.delta.read(delta_response(CLUSTER, "1", {str(number): "" for number in range(4)}))
    with pytest.raises(BadMessage, match="more than 3"):
        stream.delta.read(delta_response(CLUSTER, "1", {}, tuple("abcd")))
    stream.whole(CLUSTER, "1", {"a": "", "b": ""})
    assert "4 resources" in stream.come(CLUSTER, "2", {"c": "", "d": ""}).refused


def test_large_work_is_weighed_by_what_is_held_too() -> None:
    stream = Stream()
    stream.send(CLUSTER)
    small = delta_response(CLUSTER, "2", {"b": ""})
    assert stream.delta.weight(small) == len(small)
    stream.whole(CLUSTER, "1", {"a": "x" * 10_000})
    assert stream.delta.weight(small) > 10_000
