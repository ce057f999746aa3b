"""The relay's state machine among a control plane and Envoys that do anything they may, in any order."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.relay.harness import any_of
from tests.relay.simulated_envoy import BAD, TYPES, Envoy
from tests.relay.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.lists(st.sampled_from("abc"), unique=True, max_size=3).map(tuple)
BODIES = ("x", "y", BAD)
# At most one resource of each name.
CONTENTS = st.dictionaries(st.sampled_from("abc"), st.sampled_from(BODIES)).map(
    lambda bodies: frozenset(any_of(name, body) for name, body in bodies.items())
)


def someone(walk: Walk) -> bool:
    return any(envoy.alive for envoy in walk.simulation.envoys)


class Walk(RuleBasedStateMachine):
    """One rule is one thing that happens to the relay or to an Envoy."""

    @initialize(random=st.randoms(use_true_random=False), arbitrary=st.booleans())
    def begin(self, random: Random, arbitrary: bool) -> None:
        self.simulation = Simulation(random, arbitrary=arbitrary)

    def living(self, data: st.DataObject) -> Envoy:
        """Any of them; drawn by number, which is what a failure then shows."""
        candidates = [envoy for envoy in self.simulation.envoys if envoy.alive]
        return candidates[data.draw(st.integers(0, len(candidates) - 1))]

    @precondition(lambda self: self.simulation.up is None)
    @rule()
    def connect(self) -> None:
        self.simulation.connect()

    @precondition(lambda self: self.simulation.up is not None)
    @rule()
    def disconnect(self) -> None:
        self.simulation.disconnect()

    @precondition(lambda self: self.simulation.up is not None)
    @rule(type_url=st.sampled_from(TYPES), resources=CONTENTS)
    def respond(self, type_url: str, resources: frozenset[bytes]) -> None:
        if type_url in self.simulation.requested_names:
            self.simulation.respond(type_url, resources)

    @precondition(lambda self: self.simulation.up is not None and self.simulation.last)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        type_url = data.draw(st.sampled_from(sorted(self.simulation.last)))
        if type_url in self.simulation.requested_names:
            self.simulation.respond(type_url, self.simulation.last[type_url].content[1])

    @precondition(lambda self: len(self.simulation.envoys) < 2)
    @rule(names=NAMES, again=st.booleans())
    def start(self, names: tuple[str, ...], again: bool) -> None:
        """An epoch with a new number, or with one that an Envoy long gone had."""
        used = [envoy.epoch for envoy in self.simulation.envoys]
        envoy = self.simulation.start(max(used, default=-1) + 1 if used or again else 7)
        for type_url in TYPES:
            envoy.subscribe_to(type_url, names)

    @precondition(someone)
    @rule(data=st.data(), type_url=st.sampled_from(TYPES), names=NAMES)
    def request(self, data: st.DataObject, type_url: str, names: tuple[str, ...]) -> None:
        self.living(data).subscribe_to(type_url, names)

    @precondition(someone)
    @rule(data=st.data(), count=st.integers(1, 4))
    def read(self, data: st.DataObject, count: int) -> None:
        envoy = self.living(data)
        for _ in range(min(count, len(envoy.outbox))):
            self.simulation.read(envoy)

    @precondition(someone)
    @rule(data=st.data(), refuse=st.booleans(), names=st.booleans())
    def process(self, data: st.DataObject, refuse: bool, names: bool) -> None:
        envoy = self.living(data)
        if envoy.inbox:
            envoy.process(refuse=refuse and self.simulation.arbitrary, names=names)

    @precondition(someone)
    @rule(data=st.data(), refuse=st.booleans(), names=st.booleans())
    def answer(self, data: st.DataObject, refuse: bool, names: bool) -> None:
        """All that is under way."""
        envoy = self.living(data)
        for _ in range(len(envoy.inbox)):
            envoy.process(refuse=refuse and self.simulation.arbitrary, names=names)
        while envoy.outbox:
            self.simulation.read(envoy)

    @precondition(someone)
    @rule(data=st.data())
    def live(self, data: st.DataObject) -> None:
        envoy = self.living(data)
        if not envoy.live:
            self.simulation.live(envoy)

    @precondition(someone)
    @rule(data=st.data(), expected=st.sampled_from([False, False, True]), closed_first=st.booleans())
    def die(self, data: st.DataObject, expected: bool, closed_first: bool) -> None:
        self.simulation.die(self.living(data), expected=expected, closed_first=closed_first)

    @precondition(lambda self: any(envoy.pending for envoy in self.simulation.envoys))
    @rule(data=st.data())
    def notice(self, data: st.DataObject) -> None:
        candidates = [envoy for envoy in self.simulation.envoys if envoy.pending]
        self.simulation.notice(candidates[data.draw(st.integers(0, len(candidates) - 1))])

    @precondition(someone)
    @rule(data=st.data())
    def reconnect(self, data: st.DataObject) -> None:
        self.simulation.reconnect(self.living(data))

    @precondition(lambda self: self.simulation.machine.next_tick() is not None)
    @rule(seconds=st.sampled_from([1.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.simulation.wait(seconds)

    @rule(from_disk=st.booleans())
    def restart_relay(self, from_disk: bool) -> None:
        self.simulation.restart_relay(from_disk=from_disk)

    @invariant()
    def all_names_are_requested(self) -> None:
        self.simulation.check_always()

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.settle()


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def start(simulation: Simulation, random: Random) -> None:
    used = [envoy.epoch for envoy in simulation.envoys]
    if len(used) < 2:
        envoy = simulation.start(max(used) + 1 if used else random.choice([0, 7]))
        names = tuple(random.sample("abc", random.randint(0, 3)))
        for type_url in TYPES:
            envoy.subscribe_to(type_url, names)


def respond(simulation: Simulation, random: Random) -> None:
    """Few contents, so that the same ones come again."""
    type_url = random.choice(TYPES)
    if simulation.up is None:
        simulation.connect()
    elif type_url in simulation.requested_names:
        names = random.sample("abc", random.randint(0, 3))
        simulation.respond(type_url, frozenset(any_of(name, random.choice(BODIES)) for name in names))


def answer(simulation: Simulation, envoy: Envoy, random: Random) -> None:
    refuse = simulation.arbitrary and random.random() < 0.3
    for _ in range(random.randint(0, len(envoy.inbox))):
        envoy.process(refuse=refuse, names=random.random() < 0.5)
    for _ in range(random.randint(0, len(envoy.outbox))):
        simulation.read(envoy)


def reach(simulation: Simulation, envoy: Envoy, random: Random) -> None:
    if not envoy.live:
        simulation.live(envoy)


def notice(simulation: Simulation, random: Random) -> None:
    if dead := [envoy for envoy in simulation.envoys if envoy.pending]:
        simulation.notice(random.choice(dead))


def wait(simulation: Simulation, random: Random) -> None:
    if simulation.machine.next_tick() is not None:
        simulation.wait(random.choice([1.0, 30.0]))


def disconnect(simulation: Simulation, random: Random) -> None:
    if simulation.up is not None:
        simulation.disconnect()


# Events and their weights.
RELAY_EVENTS: dict[Callable[[Simulation, Random], None], float] = {
    start: 2,
    respond: 4,
    notice: 2,
    wait: 1,
    disconnect: 0.5,
    lambda simulation, random: simulation.restart_relay(from_disk=random.random() < 0.3): 0.2,
}
ENVOY_EVENTS: dict[Callable[[Simulation, Envoy, Random], None], float] = {
    answer: 7,
    reach: 1,
    lambda simulation, envoy, random: envoy.subscribe_to(
        random.choice(TYPES), tuple(random.sample("abc", random.randint(0, 3)))
    ): 1,
    lambda simulation, envoy, random: simulation.reconnect(envoy): 0.5,
    lambda simulation, envoy, random: simulation.die(
        envoy, expected=random.random() < 0.3, closed_first=random.random() < 0.5
    ): 0.7,
}


@pytest.mark.parametrize("seed", range(4))
def test_long_random_walks(seed: int) -> None:
    random = Random(seed)
    for _ in range(100):
        simulation = Simulation(random, arbitrary=random.random() < 0.5)
        for _ in range(random.choice([20, 60, 150])):
            living = [envoy for envoy in simulation.envoys if envoy.alive]
            if living and random.random() < 0.5:
                (act,) = random.choices(list(ENVOY_EVENTS), list(ENVOY_EVENTS.values()))
                act(simulation, random.choice(living), random)
            else:
                (turn,) = random.choices(list(RELAY_EVENTS), list(RELAY_EVENTS.values()))
                turn(simulation, random)
            simulation.check_always()
        simulation.settle()
