"""Memory that an earlier kumadp handed over or wrote to disk, and what of the present one never reaches the disk."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import msgspec

from kumadp.relay import last_good
from kumadp.relay.messages import CLUSTER, SECRET, Response, encode_response
from kumadp.relay.snapshot import KeptSockets, RelaySnapshot, TypeSnapshot
from kumadp.relay.state_machine import RelayStateMachine
from kumadp.relay.verdicts import RejectedResource
from tests.relay.harness import NODE, Bench, any_of, one
from tests.relay.test_last_good import BINDING, NOW, bootstrap, loaded, written

if TYPE_CHECKING:
    from pathlib import Path

ACCEPTED = encode_response(CLUSTER, "1", [one("1")])
REJECTED = encode_response(CLUSTER, "2", [one("1"), any_of("bad")])


def earlier_type(**more: Any) -> dict[str, Any]:
    """Return a type as kumadp encoded it before it had verdicts on resources."""
    fields: dict[str, Any] = {"type_url": CLUSTER, "names": [], "accepted": ACCEPTED, "latest": None}
    return {**fields, "rejected": [Response.parse(REJECTED).digest], "deadly": [], "suspected": [], **more}


def check_withheld(memory: RelaySnapshot) -> None:
    """Check that what Envoy rejected before is not given to the next one at first."""
    bench = Bench(RelayStateMachine(NODE, snapshot=memory))
    bench.connect()
    bench.envoy(1, 0)
    bench.request(1, CLUSTER)
    bench.ack(1, CLUSTER)
    bench.live(0)
    bench.do(bench.machine.down_closed(1))
    bench.envoy(2, 0)
    bench.versions[2, CLUSTER] = "1"
    bench.request(2, CLUSTER)
    bench.ack(2, CLUSTER)
    bench.took_up()
    bench.took_down()
    bench.respond(CLUSTER, "3", *Response.parse(REJECTED).resources)
    assert bench.took_down() == []
    assert [bool(request.error) for request in bench.took_up()] == [True]
    assert [each.name for each in bench.machine.withheld()] == ["bad"]


def test_a_handover_of_an_earlier_kumadp_is_read() -> None:
    encoded = msgspec.msgpack.encode({"types": [earlier_type(latest=REJECTED)]})
    memory = msgspec.msgpack.decode(encoded, type=RelaySnapshot)
    assert [each.name for each in RelayStateMachine(NODE, snapshot=memory).withheld()] == ["bad"]
    check_withheld(memory)


async def test_a_file_of_an_earlier_kumadp_is_read(tmp_path: Path) -> None:
    copy = {"binding": BINDING, "bootstrap": bootstrap(), "corefile_template": None, "left_out": {}}
    body = msgspec.msgpack.encode({**copy, "memory": {"types": [earlier_type()]}})
    path = tmp_path / last_good.FILE
    path.write_bytes(last_good.MAGIC + hashlib.sha256(body).digest() + body)
    path.chmod(0o600)
    os.utime(path, (NOW, NOW))
    last = await loaded(tmp_path)
    assert last is not None
    check_withheld(last.memory)


async def test_keys_of_rejected_resources_are_written_and_texts_and_held_clusters_are_not(tmp_path: Path) -> None:
    text = "it has the key abcdef"
    rejected = (RejectedResource("bad", b"\x01" * 32, text),)
    clusters = TypeSnapshot(CLUSTER, (), ACCEPTED, withheld=rejected, held=(any_of("held-cluster"),))
    secrets = TypeSnapshot(SECRET, ("a-secret",), encode_response(SECRET, "1", []), withheld=rejected)
    content = await written(tmp_path, RelaySnapshot((clusters, secrets)))
    assert text.encode() not in content
    assert b"held-cluster" not in content
    last = await loaded(tmp_path)
    assert last is not None
    kept = {saved.type_url: saved.withheld for saved in last.memory.types}
    assert kept == {CLUSTER: (RejectedResource("bad", b"\x01" * 32),), SECRET: ()}


async def test_sockets_that_envoy_keeps_are_written(tmp_path: Path) -> None:
    """An Envoy that outlives its kumadp has them."""
    sockets = (KeptSockets("inbound", reuse_port=False, bound=True),)
    await written(tmp_path, RelaySnapshot((TypeSnapshot(CLUSTER, (), ACCEPTED),), sockets))
    last = await loaded(tmp_path)
    assert last is not None
    assert last.memory.sockets == sockets
