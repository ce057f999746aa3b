"""Delta upstream from the disk file of an earlier kumadp, and to a control plane that has another configuration."""

from __future__ import annotations

import hashlib
import os
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from envoy.service.discovery.v3 import discovery_pb2

from kumadp.relay import last_good
from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.state_machine import RelayStateMachine
from tests.relay.delta_simulation import DeltaSimulation, serve, some
from tests.relay.harness import CLUSTER, ENDPOINTS, LISTENER, NODE, SECRET
from tests.relay.test_delta_walks import BODY, VERSIONS
from tests.relay.test_last_good import BINDING, NOW, bootstrap
from tests.support.xds.delta import version_of

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.relay.snapshot import RelaySnapshot


class Journalled(DeltaSimulation):
    """Notes what goes over the stream: (type, initial versions), (type, names sent, names removed)."""

    def __init__(self, random: Random, version: str) -> None:
        super().__init__(random, version)
        self.initial: dict[str, dict[str, str]] = {}
        self.received: list[tuple[str, set[str], set[str]]] = []

    def protocol(self) -> XdsProtocol:
        return self.dialect.protocol

    def read_up(self) -> None:
        if self.dialect.protocol is XdsProtocol.DELTA:
            request = discovery_pb2.DeltaDiscoveryRequest.FromString(self.up_out[0])
            self.initial.setdefault(request.type_url, dict(request.initial_resource_versions))
        super().read_up()

    def read_response(self) -> None:
        if self.dialect.protocol is XdsProtocol.DELTA:
            response = discovery_pb2.DeltaDiscoveryResponse.FromString(self.up_in[0])
            names = {resource.name for resource in response.resources}
            self.received.append((response.type_url, names, set(response.removed_resources)))
        super().read_response()

    def boot(self, memory: RelaySnapshot) -> None:
        """Start kumadp and Envoy from the memory on disk, while the control plane is unreachable."""
        self.disconnect()
        self.stop()
        self.machine = RelayStateMachine(NODE, snapshot=memory, withhold_secrets=True, queries=True)
        self.start()
        self.initial.clear()
        self.received.clear()
        self.pump(500)

    def sent_up_to(self, type_url: str) -> tuple[set[str], set[str]]:
        """Return all names of this type that the control plane sent, and all that it removed."""
        rows = [row for row in self.received if row[0] == type_url]
        return set().union(*(row[1] for row in rows)), set().union(*(row[2] for row in rows))


def earlier_file(path: Path, memory: RelaySnapshot) -> None:
    """Write the file as kumadp did when it spoke state of the world alone, with the fields of that time."""
    types = [
        {
            "type_url": saved.type_url,
            "names": list(saved.names),
            "accepted": saved.accepted if saved.type_url != SECRET else None,
            "latest": None,
            "rejected": [],
            "deadly": [],
            "suspected": [],
        }
        for saved in memory.types
    ]
    copy: dict[str, Any] = {"binding": BINDING, "bootstrap": bootstrap(), "corefile_template": None, "left_out": {}}
    body = msgspec.msgpack.encode({**copy, "memory": {"types": types}})
    path.write_bytes(last_good.MAGIC + hashlib.sha256(body).digest() + body)
    path.chmod(0o600)
    os.utime(path, (NOW, NOW))


def earlier_memory(path: Path, memory: RelaySnapshot) -> RelaySnapshot:
    """Return what is read from such a file."""
    earlier_file(path, memory)
    return last_good.read_copy(path, BINDING, 3600.0, NOW).memory


def memory_on_disk(simulation: DeltaSimulation, path: Path) -> RelaySnapshot:
    simulation.settle()
    simulation.assert_translated()
    return earlier_memory(path, simulation.machine.snapshot())


@pytest.mark.parametrize("seed", range(5))
def test_a_file_from_state_of_the_world_has_only_differences_sent(tmp_path: Path, seed: int) -> None:
    simulation = Journalled(Random(seed), "2.8")
    serve(simulation, {"a": "x", "b": "x", "c": "x", "s": "x"}, "x", {"l": "x", "m": "x", "t": "x"})
    simulation.start()
    memory = memory_on_disk(simulation, tmp_path / last_good.FILE)
    assert simulation.protocol() is XdsProtocol.SOTW
    simulation.boot(memory)
    assert simulation.envoy is not None
    assert set(simulation.envoy.sets[CLUSTER]) == {"a", "b", "c", "s"}
    former = {kind: dict(resources) for kind, resources in simulation.node.resources.items()}
    # It is back as another version: a is changed, b removed, d added; so are listeners.
    simulation.upgrade("3.0")
    serve(simulation, {"a": "y", "c": "x", "d": "x", "s": "x"}, "x", {"l": "y", "n": "x", "t": "x"})
    simulation.settle()
    simulation.assert_translated()
    assert simulation.protocol() is XdsProtocol.DELTA
    for kind in (CLUSTER, LISTENER):
        assert simulation.initial[kind] == {name: version_of(each) for name, each in former[kind].items()}
    assert simulation.initial[ENDPOINTS] == {name: version_of(each) for name, each in former[ENDPOINTS].items()}
    assert simulation.initial[SECRET] == {}
    assert simulation.sent_up_to(CLUSTER) == ({"a", "d"}, {"b"})
    assert simulation.sent_up_to(LISTENER) == ({"l", "n"}, {"m"})
    assert simulation.sent_up_to(SECRET) == ({"k"}, set())
    accepted = {saved.type_url: saved.accepted for saved in simulation.machine.snapshot().types}
    for kind, served in simulation.node.resources.items():
        raw = accepted[kind] or b""
        names = {name_in(resource.value) for resource in discovery_pb2.DiscoveryResponse.FromString(raw).resources}
        assert names == served.keys(), kind


def name_in(body: bytes) -> str:
    """Return field 1 of a resource."""
    return body[2 : 2 + body[1]].decode()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_that_is_as_the_control_plane_has_it_changes_nothing(tmp_path: Path, version: str) -> None:
    simulation = Journalled(Random(1), "2.8")
    serve(simulation, {"a": "x", "b": "x", "s": "x"}, "x", {"l": "x", "t": "x"})
    simulation.start()
    memory = memory_on_disk(simulation, tmp_path / last_good.FILE)
    simulation.boot(memory)
    simulation.sent_down.clear()
    simulation.upgrade(version)
    simulation.settle()
    simulation.assert_translated()
    # The secret is not on disk, all the rest Envoy has.
    assert {kind for kind, _ in simulation.sent_down} == {SECRET}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_of_another_control_plane_stays(tmp_path: Path, version: str, seed: int) -> None:
    """Its database was replaced: what a file, a running kumadp and Envoy have of the previous one is removed."""
    random = Random(seed)
    for number in range(25):
        simulation = Journalled(random, random.choice(VERSIONS))
        serve(simulation, some("abcs", BODY, random), random.choice("xy"), some("lmt", BODY, random))
        simulation.start()
        if random.random() < 0.5:
            simulation.live()
        memory = memory_on_disk(simulation, tmp_path / f"{number}.msgpack")
        if random.random() < 0.7:
            simulation.boot(memory)
        simulation.upgrade(version)
        serve(simulation, some("abcdes", BODY, random), random.choice("xyz"), some("lmnot", BODY, random))
        simulation.pump(random.randint(0, 40))
        simulation.settle()
        simulation.assert_translated()
