"""Discovery messages: of the control plane and of Envoy, state of the world and delta, health checks, gzip."""

from __future__ import annotations

import contextlib
import gzip

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.grpc.call import StreamEnded, _unpacked
from kumadp.relay.admin_fingerprint import fingerprint
from kumadp.relay.delta_messages import DeltaResponse, encode_delta_request
from kumadp.relay.health_admin import admin_socket, with_admin_socket
from kumadp.relay.listener_sockets import Sockets, wanted_sockets, with_sockets
from kumadp.relay.messages import (
    CLUSTER,
    LISTENER,
    BadMessage,
    Outline,
    Request,
    Response,
    encode_response,
    encode_status,
    outline,
    status_message,
)
from kumadp.relay.protobuf import field_bytes, field_text, varint
from kumadp.relay.resource_set import ResourceSet
from kumadp.relay.resources import endpoint_name, policies
from kumadp.relay.secret_scan import why_secret
from kumadp.relay.snapshot import RelaySnapshot, TypeSnapshot
from tests.fuzz.structure import messages
from tests.fuzz.target import Target

_WORDS = (
    b"\x0a", b"\x12", b"\x1a", b"\x22\x2btype.googleapis.com/", b"\x2a\x01n", b"\x32", b"\x80\x01",
    b"\xff\xff\xff\xff\x0f",
    b"\x80" * 10, b"\x07", b"\x0b", b"\x00", b"\xd2\x01\x02\x08\x00", b"\xea\x01\x02\x08\x01", CLUSTER.encode(),
    LISTENER.encode(), b"kri_mtp_default___a_", b"system_envoy_admin", b"dataplane.admin.socketPath", b"PRIVATE KEY",
)  # fmt: skip


def _any(type_url: str, name: str, *more: bytes) -> bytes:
    return field_text(1, type_url) + field_bytes(2, field_text(1, name) + b"".join(more))


def _resources() -> list[bytes]:
    eds = field_bytes(3, field_text(2, "service"))
    return [
        _any(CLUSTER, "a", field_bytes(26, b"")),
        _any(CLUSTER, "b", eds),
        _any(LISTENER, "l", field_bytes(2, b"\x0a\x02::"), b"\xea\x01\x02\x08\x01", b"\xd2\x01\x02\x08\x00"),
        _any(LISTENER, "m" * 200, b"x" * 300),
    ]


def _responses() -> list[bytes]:
    return [encode_response(CLUSTER, "1", _resources()[:2], "n"), encode_response(LISTENER, "v", _resources()[2:], "x")]


def _requests() -> list[bytes]:
    node = field_text(1, "default.a")
    return [
        Request(CLUSTER, "1", node, ("a", "b"), "n").encode(),
        Request(LISTENER, nonce="n", error=encode_status(13, "rejected")).encode(),
    ]


def _deltas() -> list[bytes]:
    wrapped = [
        field_bytes(2, field_bytes(2, resource) + field_text(3, f"r{number}") + field_text(1, "v"))
        for number, resource in enumerate(_resources())
    ]
    heartbeat = field_bytes(2, field_text(3, "r9"))
    return [
        field_text(1, "1") + b"".join(wrapped) + field_text(4, CLUSTER) + field_text(5, "n") + field_text(6, "gone"),
        heartbeat + field_text(4, LISTENER),
    ]


def _response(data: bytes) -> None:
    response = Response.parse(data)
    theirs = discovery_pb2.DiscoveryResponse()
    with contextlib.suppress(DecodeError):
        theirs.ParseFromString(data)
        assert (theirs.type_url, theirs.nonce, theirs.version_info) == (
            response.type_url, response.nonce, response.version,
        )  # fmt: skip
    again = Response.read(data, lambda _type: response.by_name)
    assert again.digest == response.digest
    assert len(response.by_name) <= len(response.resources)
    for resource in response.by_name.values():
        why_secret(bytes(resource.raw))
        endpoint_name(resource)
        policies(resource)
        wanted = wanted_sockets(resource)
        changed = with_sockets(resource, Sockets(not wanted.reuse_port, not wanted.bound))
        field_bytes(2, changed)
    with contextlib.suppress(BadMessage):
        outline(data[:200], data[-200:])
    fingerprint(RelaySnapshot((TypeSnapshot(LISTENER, accepted=data),)), TcpAdmin("127.0.0.1", 9901))


def _set(data: bytes) -> None:
    first = ResourceSet.parse(data)
    names = list(first.names)
    second, response = first.with_changes(Outline(CLUSTER, "", "n"), {}, names[:1], largest=1 << 20)
    assert set(second.names) == {*names} - {*names[:1]}
    assert set(ResourceSet.parse(response.raw).names) == set(second.names)


def _request(data: bytes) -> None:
    request = Request.parse(data)
    theirs = discovery_pb2.DiscoveryRequest()
    with contextlib.suppress(DecodeError):
        theirs.ParseFromString(data)
        assert (theirs.type_url, tuple(theirs.resource_names), theirs.response_nonce) == (
            request.type_url, request.names, request.nonce,
        )  # fmt: skip
    assert Request.parse(request.encode()) == request
    status_message(request.error)


def _delta(data: bytes) -> None:
    response = DeltaResponse.parse(data)
    theirs = discovery_pb2.DeltaDiscoveryResponse()
    with contextlib.suppress(DecodeError):
        theirs.ParseFromString(data)
        assert (theirs.type_url, theirs.nonce) == (response.type_url, response.nonce)
    try:
        merged, whole = ResourceSet().with_changes(
            Outline(response.type_url, "", response.nonce), response.resources, response.removed, largest=1 << 20
        )
    except BadMessage:
        return
    assert set(merged.names) == set(response.resources)
    Response.parse(whole.raw) if response.type_url else None
    back = encode_delta_request(
        response.type_url, subscribe=response.resources, unsubscribe=response.removed, versions=merged.versions()
    )
    discovery_pb2.DeltaDiscoveryRequest.FromString(back)


def _health(data: bytes) -> None:
    path = admin_socket(data)
    changed = with_admin_socket(data, path or "/run/admin.sock")
    with_admin_socket(changed, "/run/admin.sock")


def _health_seeds() -> list[bytes]:
    check = field_text(1, "system_envoy_admin") + field_bytes(2, b"x") + field_bytes(3, b"y")
    entry = field_text(1, "dataplane.admin.socketPath") + field_bytes(2, field_text(3, "/run/a.sock"))
    node = field_text(1, "id") + field_bytes(3, field_bytes(1, entry))
    return [field_bytes(1, check) + field_bytes(2, b"\x08\x01"), field_bytes(1, field_bytes(1, node))]


def _secret(data: bytes) -> None:
    why_secret(data)


def _gzip(data: bytes) -> None:
    assert len(_unpacked(data, 100_000)) <= 100_000


def _messages() -> st.SearchStrategy[bytes]:
    """Messages of messages, with field numbers and types that discovery messages have, and others."""
    name = st.sampled_from([b"a", b"b", b"", b"\xff", CLUSTER.encode(), LISTENER.encode(), b"type.googleapis.com/x"])
    number = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 26, 29, 33, 1000])

    def message(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
        field = st.tuples(number, inner).map(lambda pair: field_bytes(*pair))
        scalar = st.tuples(number, st.integers(0, 1 << 40)).map(lambda pair: varint(pair[0] << 3) + varint(pair[1]))
        return st.lists(st.one_of(field, field, scalar), max_size=6).map(b"".join)

    return message(st.recursive(name, message, max_leaves=12))


TARGETS = (
    Target(
        "xds-response", _response, _responses, (BadMessage,), _WORDS, _messages, lines=200, lines_base=8000, memory=600,
        memory_base=100_000, structure=messages,
    ),
    Target("xds-resource-set", _set, _responses, (BadMessage,), _WORDS, _messages, lines=100, memory=500,
    structure=messages),
    Target("xds-request", _request, _requests, (BadMessage,), _WORDS, _messages, lines=60, memory=300,
    structure=messages),
    Target("xds-delta", _delta, _deltas, (BadMessage,), _WORDS, _messages, lines=100, memory=600, structure=messages),
    Target("xds-health", _health, _health_seeds, (), _WORDS, _messages, lines=100, memory=300, structure=messages),
    Target("xds-secret-scan", _secret, _resources, (), _WORDS, _messages, lines=120, memory=300, structure=messages),
    Target(
        "grpc-gzip", _gzip, lambda: [gzip.compress(b"a" * 3000), gzip.compress(bytes(90_000))], (StreamEnded,),
        memory_base=900_000,
    ),
)  # fmt: skip
