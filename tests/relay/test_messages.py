"""The outer fields of discovery messages, against Envoy's own message types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2, message
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from kumadp.relay.messages import (
    TYPES,
    BadMessage,
    Request,
    Response,
    encode_nonce,
    encode_response,
    encode_status,
    outline,
    status_message,
)
from kumadp.relay.protobuf import field_text
from tests.relay.harness import CLUSTER, any_of

if TYPE_CHECKING:
    from kumadp.relay.resources import XdsResource

REQUESTS = st.builds(
    Request,
    type_url=st.text(min_size=1),
    version=st.text(),
    node=st.just(b""),
    names=st.lists(st.text(), max_size=5).map(tuple),
    nonce=st.text(),
    error=st.builds(encode_status, st.integers(1, 16), st.text()),
)


def endpoints(name: str) -> bytes:
    packed = any_pb2.Any()
    packed.Pack(endpoint_pb2.ClusterLoadAssignment(cluster_name=name))
    return bytes(packed.SerializeToString())


@given(REQUESTS)
def test_a_request_reads_the_same_for_envoys_types_and_for_ours(request: Request) -> None:
    theirs = discovery_pb2.DiscoveryRequest.FromString(request.encode())
    assert (theirs.type_url, theirs.version_info, theirs.response_nonce) == (
        request.type_url,
        request.version,
        request.nonce,
    )
    assert tuple(theirs.resource_names) == request.names
    assert theirs.error_detail.SerializeToString() == request.error
    assert Request.parse(theirs.SerializeToString()) == request


def test_a_rejection_without_words_is_a_rejection_still() -> None:
    theirs = discovery_pb2.DiscoveryRequest(type_url="t", error_detail=status_pb2.Status())
    assert Request.parse(theirs.SerializeToString()).error


def test_fields_the_relay_does_not_know_are_skipped() -> None:
    theirs: Any = discovery_pb2.DiscoveryRequest(type_url="t", resource_locators=[{"name": "x"}])
    assert Request.parse(theirs.SerializeToString()) == Request("t")


@given(st.text(), st.text(), st.lists(st.text(min_size=1), unique=True, max_size=200), st.text())
def test_a_response_keeps_its_resources_and_takes_another_nonce(
    version: str, nonce: str, names: list[str], other: str
) -> None:
    theirs = discovery_pb2.DiscoveryResponse(
        version_info=version, nonce=nonce, type_url="t", canary=True, control_plane={"identifier": "cp"}
    )
    theirs.resources.extend(any_pb2.Any.FromString(endpoints(name)) for name in names)
    response = Response.parse(theirs.SerializeToString())
    assert (response.type_url, response.version, response.nonce) == ("t", version, nonce)
    assert list(response.resources) == [endpoints(name) for name in names]
    assert set(response.by_name) == set(names)
    theirs.nonce = other
    assert discovery_pb2.DiscoveryResponse.FromString(response.raw + encode_nonce(other)) == theirs
    ours = encode_response("t", version, response.resources, nonce)
    assert Response.parse(ours).digest == response.digest


@given(st.text(), st.text(), st.lists(st.binary(), max_size=20), st.integers(0, 50), st.integers(0, 50))
def test_the_outline_of_a_response_is_read_from_its_ends(
    version: str, nonce: str, resources: list[bytes], head: int, tail: int
) -> None:
    theirs = discovery_pb2.DiscoveryResponse(
        version_info=version, nonce=nonce, type_url=TYPES + "x", canary=True, control_plane={"identifier": "cp"}
    )
    decoy = encode_response(TYPES + "other", "1", resources, "2")
    theirs.resources.extend(any_pb2.Any(type_url=TYPES + "x", value=decoy + one) for one in [*resources, b""])
    data = theirs.SerializeToString()
    ends = len(field_text(4, TYPES + "x") + encode_nonce(nonce)) + 8 + tail
    found = outline(data[: len(field_text(1, version)) + head], data[-ends:])
    assert (found.type_url, found.nonce) == (TYPES + "x", nonce)
    assert found.version == version


def test_the_outline_of_a_delta_response_is_read_from_its_ends() -> None:
    theirs = discovery_pb2.DeltaDiscoveryResponse(
        system_version_info="v", nonce="7", type_url=TYPES + "x", removed_resources=["a", "b"]
    )
    theirs.control_plane.identifier = "cp"
    theirs.resources.add(name="c", version="1").resource.value = b"x" * 1000
    data = theirs.SerializeToString()
    found = outline(data[:100], data[-200:])
    assert (found.type_url, found.version, found.nonce) == (TYPES + "x", "v", "7")


@pytest.mark.parametrize("tail", [b"", b"x" * 100, b'"' * 100, field_text(4, "t"), field_text(2, TYPES + "x")])
def test_bytes_without_a_type_at_their_end_have_no_outline(tail: bytes) -> None:
    with pytest.raises(BadMessage):
        outline(b"", tail)


@given(st.lists(st.binary(max_size=8), max_size=6), st.randoms(use_true_random=False))
def test_the_digest_knows_neither_order_nor_version(resources: list[bytes], random: Any) -> None:
    shuffled = random.sample(resources, len(resources))
    one = Response.parse(encode_response("t", "1", resources, "n"))
    two = Response.parse(encode_response("t", "2", shuffled))
    assert one.digest == two.digest
    other = Response.parse(encode_response("t", "1", [*resources, b"something else"]))
    assert other.digest != one.digest


def test_names_are_unknown_when_a_resource_has_none() -> None:
    response = Response.parse(encode_response("t", "1", [endpoints("a"), b""]))
    assert [resource.name for resource in response.by_name.values()] == ["a", ""]
    assert Response.parse(encode_response("t", "1", [])).by_name == {}


@given(st.binary())
def test_any_bytes_are_either_read_as_protobuf_reads_them_or_refused(data: bytes) -> None:
    try:
        request = Request.parse(data)
        Response.parse(data)
    except BadMessage:
        return
    try:
        theirs = discovery_pb2.DiscoveryRequest.FromString(data)
    except message.DecodeError:
        return
    assert theirs.type_url == request.type_url


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a\x05abc",
        b"\x0a",
        b"\x22\x80",
        b"\x22\x02\xff\xfe",
        b"\x02\x00",
        b"\x0b",
        b"\x29\x00",
        b"\x0a" + b"\xff" * 11,
        b"\x18",
    ],
)
def test_bad_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Request.parse(data)
    with pytest.raises(BadMessage):
        Response.parse(data)


def test_the_text_of_a_status() -> None:
    status = status_pb2.Status(code=13, message="no such filter")
    assert encode_status(13, "no such filter") == status.SerializeToString()
    assert status_message(status.SerializeToString()) == "no such filter"
    assert status_message(b"") == "no reason given"
    assert status_message(b"\xff") == "no reason given"


def test_resources_that_are_the_same_as_before_are_read_alike() -> None:
    before = Response.parse(encode_response(CLUSTER, "1", [any_of("a"), any_of("b"), any_of("c", "x")]))
    data = encode_response(CLUSTER, "2", [any_of("c", "y"), any_of("a"), any_of("new"), b"\x0a\x01t"])
    types = []
    for former in ({}, before.by_name):

        def former_of(type_url: str, former: dict[str, XdsResource] = former) -> dict[str, XdsResource]:
            types.append(type_url)
            return former

        response = Response.read(data, former_of)
        assert (response.type_url, response.version) == (CLUSTER, "2")
        expected = Response.parse(data).by_name
        assert [each.key for each in response.by_name.values()] == [each.key for each in expected.values()]
        assert [bytes(each.raw) for each in response.by_name.values()] == list(response.resources)
        # The former message must not be kept in memory.
        assert all(each.source is data for each in response.by_name.values())
        assert response.digest == Response.parse(data).digest
    assert types == [CLUSTER, CLUSTER]
