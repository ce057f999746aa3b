"""Listeners reach an Envoy with the sockets that it has, whatever the control plane sends."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from envoy.config.listener.v3 import listener_pb2
from google.protobuf import any_pb2

from kumadp.relay.listener_sockets import Sockets, wanted_sockets, with_sockets
from kumadp.relay.protobuf import field_bytes, fields
from kumadp.relay.resources import XdsResource, read_resources
from kumadp.relay.snapshot import KeptSockets, RelaySnapshot
from kumadp.relay.state_machine import RelayStateMachine
from tests.relay.harness import CLUSTER, LISTENER, NODE, Bench
from tests.support.xds.resources import address, encode

PORT = 8080


def listener(name: str = "inbound", port: int = PORT, **more: Any) -> bytes:
    """``reuse`` and ``bind`` are left out if they are not given; ``text`` is content of no meaning here."""
    fields = {"reuse": "enableReusePort", "bind": "bindToPort", "text": "statPrefix"}
    tree = {"name": name, "address": address("127.0.0.1", port)}
    return encode(LISTENER, tree | {fields.get(key, key): value for key, value in more.items()})


def read(encoded: bytes) -> tuple[XdsResource, ...]:
    return tuple(read_resources(encoded, [(start, end) for _, start, end in fields(encoded)], {}))


def parsed(encoded: bytes) -> listener_pb2.Listener:
    return listener_pb2.Listener.FromString(any_pb2.Any.FromString(encoded).value)


def sockets_of(encoded: bytes) -> tuple[bool, bool]:
    """SO_REUSEPORT and binding, by a protobuf runtime, as Envoy on Linux takes them."""
    read = parsed(encoded)
    flags = ((read.HasField(field), getattr(read, field).value) for field in ("enable_reuse_port", "bind_to_port"))
    first, second = (value or not present for present, value in flags)
    return first, second


def change(bench: Bench, version: str, *listeners: bytes) -> None:
    bench.respond(LISTENER, version, *listeners)
    for stream in sorted({stream for stream, _ in bench.down}):
        bench.ack(stream, LISTENER)


def given(bench: Bench, stream: int = 1) -> list[bytes]:
    """Return the listeners that an Envoy was given last."""
    return list(bench.seen[stream, LISTENER].resources)


def start(bench: Bench, stream: int, epoch: int) -> None:
    """Start an Envoy that accepts clusters and listeners."""
    bench.envoy(stream, epoch)
    for type_url in (CLUSTER, LISTENER):
        bench.request(stream, type_url)
        bench.ack(stream, type_url)
    bench.live(epoch)
    bench.took_down()


def running(*listeners: bytes) -> Bench:
    """A bench whose Envoy runs with these."""
    bench = Bench()
    bench.connect()
    bench.respond(CLUSTER, "1")
    bench.respond(LISTENER, "1", *listeners)
    start(bench, 1, 0)
    bench.took_up()
    return bench


@pytest.mark.parametrize("reuse", [{"reuse": False}, {"reuse": True}, {}], ids=str)
@pytest.mark.parametrize("bind", [{"bind": False}, {"bind": True}, {}], ids=str)
def test_what_a_listener_wants_is_what_a_protobuf_runtime_reads(reuse: dict[str, Any], bind: dict[str, Any]) -> None:
    encoded = listener(**reuse, **bind)
    (resource,) = read(field_bytes(2, encoded))
    assert wanted_sockets(resource) == sockets_of(encoded)
    for sockets in (Sockets(True, True), Sockets(True, False), Sockets(False, True), Sockets(False, False)):
        rewritten = bytes(with_sockets(resource, sockets))
        assert sockets_of(rewritten) == sockets
        former, now = parsed(encoded), parsed(rewritten)
        for field in ("enable_reuse_port", "bind_to_port"):
            former.ClearField(field)
            now.ClearField(field)
        assert former == now
        assert any_pb2.Any.FromString(rewritten).type_url == LISTENER


def test_bytes_that_look_like_the_fields_are_not_taken_for_them() -> None:
    look_alike = b"\xea\x01\x00\xd2\x01\x00"
    extension = {"@type": "type.googleapis.com/google.protobuf.BytesValue", "value": "6gEA0gEA"}
    encoded = listener(listenerFilters=[{"name": "any", "typedConfig": extension}])
    assert look_alike in encoded
    (resource,) = read(field_bytes(2, encoded))
    assert wanted_sockets(resource) == (True, True)


@pytest.mark.parametrize("value", [b"", b"\xea\x01", b"\xea\x01\x7f", b"\x0a\x01a\xea\x01\x7f", b"\x07\xea\x01"])
def test_what_cannot_be_read_is_left_as_it_is(value: bytes) -> None:
    (resource,) = read(field_bytes(2, field_bytes(1, LISTENER.encode()) + field_bytes(2, value)))
    assert wanted_sockets(resource) == (True, True)
    (broken,) = read(field_bytes(2, b"\xea\x01\x7f"))
    assert with_sockets(broken, Sockets(reuse_port=False)) == broken.raw


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False), (None, False), (False, None)])
def test_an_envoy_keeps_so_reuseport_as_it_was_when_the_listener_came(first: bool | None, second: bool | None) -> None:
    before: dict[str, Any] = {} if first is None else {"reuse": first}
    after: dict[str, Any] = {} if second is None else {"reuse": second}
    bench = running(listener(**before, text="1"), listener("outbound", PORT + 1))
    change(bench, "2", listener(**after, text="2"), listener("outbound", PORT + 1))
    kept, other = given(bench)
    assert sockets_of(kept) == sockets_of(listener(**before))
    assert parsed(kept).stat_prefix == "2"
    assert other == listener("outbound", PORT + 1)
    assert len(bench.notes) == 1
    # The control plane is answered as if it were its own response.
    assert [(request.version, request.error) for request in bench.took_up()] == [("2", b"")]
    assert bench.machine.withheld() == []
    # At another address too, which Envoy rejects as well; and the line in the log does not repeat.
    change(bench, "3", listener(port=PORT + 2, **after))
    assert sockets_of(given(bench)[0]) == sockets_of(listener(**before))
    assert len(bench.notes) == 1
    # The way back is sent without a change.
    change(bench, "4", listener(**before, text="4"))
    assert given(bench) == [listener(**before, text="4")]


def test_a_listener_that_was_removed_may_have_others() -> None:
    bench = running(listener(reuse=False))
    change(bench, "2", listener("outbound", PORT + 1))
    change(bench, "3", listener(reuse=True))
    assert given(bench) == [listener(reuse=True)]
    assert bench.notes == []


def test_a_port_of_a_listener_that_runs_unbound_is_not_bound() -> None:
    """Envoy 1.40 ends by a signal if it is; another address gets other sockets."""
    bench = running(listener(bind=False))
    change(bench, "2", listener(text="2"))
    assert [sockets_of(each) for each in given(bench)] == [(True, False)]
    change(bench, "3", listener(port=PORT + 1))
    assert given(bench) == [listener(port=PORT + 1)]
    change(bench, "4", listener(port=PORT + 1, bind=False))
    assert given(bench) == [listener(port=PORT + 1, bind=False)]


def test_an_envoy_that_takes_over_may_set_so_reuseport_and_bind() -> None:
    bench = running(listener(reuse=False, bind=False))
    change(bench, "2", listener(reuse=True, bind=True))
    start(bench, 2, 1)
    assert given(bench, 2) == [listener(reuse=True, bind=True)]
    change(bench, "3", listener(reuse=False, bind=False, text="3"))
    # Each as its own sockets are; a port that is bound stays so until the address changes.
    assert [sockets_of(each) for each in given(bench, 1)] == [(False, False)]
    assert [sockets_of(each) for each in given(bench, 2)] == [(True, False)]


def test_an_envoy_that_takes_over_does_not_unset_so_reuseport() -> None:
    bench = running(listener(reuse=True))
    change(bench, "2", listener(reuse=False))
    start(bench, 2, 1)
    assert [sockets_of(each) for each in given(bench, 2)] == [(True, True)]
    bench.do(bench.machine.envoy_ended(0, expected=True))
    change(bench, "3", listener(reuse=False, text="3"))
    assert [sockets_of(each) for each in given(bench, 2)] == [(True, True)]


def test_an_envoy_that_starts_alone_gets_what_the_control_plane_sends() -> None:
    bench = running(listener(reuse=True))
    change(bench, "2", listener(reuse=False))
    bench.die(1, 0)
    start(bench, 2, 1)
    assert given(bench, 2) == [listener(reuse=False)]


def test_a_stream_that_is_opened_again_changes_nothing() -> None:
    bench = running(listener(reuse=False))
    bench.do(bench.machine.down_closed(1))
    bench.envoy(2, 0)
    bench.versions[2, LISTENER] = "1"
    bench.request(2, LISTENER)
    change(bench, "2", listener(reuse=True))
    assert [sockets_of(each) for each in given(bench, 2)] == [(False, True)]


def restarted(bench: Bench) -> Bench:
    """A new kumadp, which has adopted the Envoy and its memory, encoded as in a handover."""
    encoded = msgspec.msgpack.encode(bench.machine.snapshot())
    following = Bench(RelayStateMachine(NODE, snapshot=msgspec.msgpack.decode(encoded, type=RelaySnapshot)))
    following.connect()
    following.live(0)
    following.envoy(1, 0)
    following.versions[1, LISTENER] = bench.versions[1, LISTENER]
    following.request(1, LISTENER)
    return following


def test_a_kumadp_that_follows_knows_the_sockets() -> None:
    bench = running(listener(reuse=False))
    change(bench, "2", listener(reuse=True))
    assert bench.machine.snapshot().sockets == (KeptSockets("inbound", reuse_port=False, bound=True),)
    # Also if that one is followed before Envoy has connected to it.
    first = RelayStateMachine(NODE, snapshot=bench.machine.snapshot())
    assert first.snapshot().sockets == bench.machine.snapshot().sockets
    following = restarted(restarted(bench))
    change(following, "3", listener(reuse=True, text="3"))
    assert [sockets_of(each) for each in given(following)] == [(False, True)]
    # And so does the Envoy that takes over from one that was adopted.
    start(following, 2, 1)
    assert given(following, 2) == [listener(reuse=True, text="3")]


def test_a_fresh_envoy_of_a_following_kumadp_is_not_bound_by_it() -> None:
    bench = running(listener(reuse=False))
    change(bench, "2", listener(reuse=True))
    following = Bench(RelayStateMachine(NODE, snapshot=bench.machine.snapshot()))
    following.connect()
    start(following, 1, 0)
    assert given(following) == [listener(reuse=True)]
