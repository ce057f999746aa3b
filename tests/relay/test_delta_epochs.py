"""Delta upstream while two epochs of Envoy are connected: one subscription, one answer, and both have the whole set."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2

from kumadp.relay.actions import RelayAction, SendDown
from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.messages import Response
from tests.relay.delta_simulation import DeltaSimulation, WarmingEnvoy, serve, some, walk
from tests.relay.harness import ENDPOINTS, LISTENER, SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Control planes that speak delta.
VERSIONS = ("2.13", "2.14", "3.0")


class HotRestarts(DeltaSimulation):
    """``parent`` is the Envoy that drains while ``envoy`` starts; ``requests``: those on all streams."""

    def __init__(self, random: Random, version: str) -> None:
        super().__init__(random, version)
        self.parent: WarmingEnvoy | None = None
        self.requests: list[Any] = []
        self.nonces: set[str] = set()
        self.live_epochs: set[int] = set()

    def connect(self) -> None:
        self.nonces = set()
        super().connect()

    def read_up(self) -> None:
        if self.dialect.protocol is XdsProtocol.DELTA:
            request = discovery_pb2.DeltaDiscoveryRequest.FromString(self.up_out[0])
            self.requests.append(request)
            assert not request.response_nonce or request.response_nonce not in self.nonces, "answered twice"
            self.nonces.add(request.response_nonce)
        super().read_up()

    def is_live(self) -> bool:
        return self.envoy is not None and self.envoy.epoch in self.live_epochs

    def live(self) -> None:
        if self.envoy is not None and LISTENER in self.envoy.sessions and self.envoy.sessions[LISTENER].version:
            self.live_epochs.add(self.envoy.epoch)
        super().live()

    def hot_restart(self) -> None:
        if self.parent is None and self.envoy is not None and self.is_live():
            self.parent, self.envoy = self.envoy, None
            self.start()

    def end_parent(self) -> None:
        """The new epoch ends it once it is LIVE itself."""
        if self.parent is not None and self.is_live():
            former, self.parent = self.parent, None
            self._end(former)

    def stop_child(self) -> None:
        """The new epoch is stopped, since it does not get LIVE, and the parent goes on."""
        if self.parent is not None and self.envoy is not None and not self.is_live():
            stopped, self.envoy, self.parent = self.envoy, self.parent, None
            self._end(stopped)

    def _end(self, envoy: WarmingEnvoy) -> None:
        self.execute(self.machine.envoy_ended(envoy.epoch, expected=True))
        self.execute(self.machine.down_closed(envoy.stream))

    def execute(self, actions: Iterable[RelayAction]) -> None:
        others = []
        for action in actions:
            if isinstance(action, SendDown) and self.parent is not None and action.stream == self.parent.stream:
                self.parent.inbox.append(Response.parse(action.data))
            else:
                others.append(action)
        super().execute(others)

    def moves(self) -> list[Any]:
        moves, parent = super().moves(), self.parent
        if parent is not None and parent.inbox:
            moves.append(parent.process)
        if parent is not None and parent.outbox:
            moves.append(self.read_parent)
        if not moves and parent is not None and parent.warming:
            moves.append(parent.give_up)
        return moves

    def read_parent(self) -> None:
        assert self.parent is not None
        self.execute(self.machine.down_message(self.parent.stream, self.parent.outbox.pop(0).encode()))


def in_delta(version: str, seed: int) -> HotRestarts:
    """Return a stage with one LIVE Envoy at rest, and a stream of delta."""
    simulation = HotRestarts(Random(seed), version)
    serve(simulation, {"a": "x", "b": "x", "c": "x", "s": "x"}, "x", {"l": "x", "t": "x"})
    while True:
        simulation.connect()
        if simulation.dialect.protocol is XdsProtocol.DELTA:
            break
        simulation.disconnect()
    simulation.start()
    simulation.settle()
    simulation.live()
    simulation.settle()
    simulation.assert_translated()
    return simulation


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("version", VERSIONS)
def test_a_new_epoch_is_served_from_memory_and_nothing_goes_up(version: str, seed: int) -> None:
    simulation = in_delta(version, seed)
    before = len(simulation.requests)
    simulation.hot_restart()
    simulation.settle()
    simulation.assert_translated()
    assert simulation.envoy is not None
    assert simulation.envoy.sets[SECRET].keys() == {"k"}
    simulation.live()
    simulation.settle()
    simulation.end_parent()
    simulation.settle()
    assert simulation.requests[before:] == []
    simulation.assert_translated()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("version", VERSIONS)
def test_a_change_during_a_hot_restart_reaches_both_and_is_answered_once(version: str, seed: int) -> None:
    simulation = in_delta(version, seed)
    simulation.hot_restart()
    simulation.pump(simulation.random.randint(0, 12))
    serve(simulation, {"a": "y", "c": "x", "d": "x", "s": "x"}, "y", {"l": "y", "n": "x", "t": "x"})
    simulation.settle()
    parent = simulation.parent
    assert parent is not None
    simulation.assert_translated()
    for kind, served in simulation.node.resources.items():
        # Listeners that are removed drain; endpoints and secrets are replaced by name.
        assert {name: parent.sets[kind].get(name) for name in served} == served, kind
    assert not parent.warming
    simulation.live()
    before = len(simulation.requests)
    simulation.end_parent()
    simulation.settle()
    simulation.assert_translated()
    # What only the parent had requested is unsubscribed.
    for request in simulation.requests[before:]:
        assert request.type_url == ENDPOINTS
        assert list(request.resource_names_subscribe) == []
        assert set(request.resource_names_unsubscribe) <= {"b"}


# Events and their weights. Rejections have walks of their own.
EVENTS: dict[Callable[[HotRestarts, Random], None], float] = {
    lambda simulation, random: serve(
        simulation, some("abcs", "xyz", random), random.choice("xyz"), some("lmt", "xyz", random)
    ): 3,
    lambda simulation, random: simulation.pump(random.randint(1, 20)): 8,
    lambda simulation, _random: simulation.connect() if simulation.server is None else None: 2,
    lambda simulation, _random: simulation.disconnect(): 0.5,
    lambda simulation, _random: simulation.reconnect(): 0.3,
    lambda simulation, _random: simulation.live(): 2,
    lambda simulation, _random: simulation.hot_restart(): 1,
    lambda simulation, _random: simulation.end_parent(): 0.7,
    lambda simulation, _random: simulation.stop_child(): 0.3,
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("version", VERSIONS)
def test_random_histories_of_hot_restarts_are_translated(version: str, seed: int) -> None:
    random = Random(seed)
    for _ in range(40):
        simulation = HotRestarts(random, version)
        walk(simulation, random, EVENTS)
        simulation.live()
        simulation.end_parent()
        simulation.settle()
        simulation.assert_translated()
