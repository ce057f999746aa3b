"""The relay's state machine among a control plane and Envoys that do anything they may, in any order."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.relay.harness import any_of
from tests.relay.players import TYPES, Envoy
from tests.relay.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.lists(st.sampled_from("abc"), unique=True, max_size=3).map(tuple)
RESOURCES = [any_of(name, body) for name in "abc" for body in "xy"]
CONTENTS = st.frozensets(st.sampled_from(RESOURCES), max_size=3)


def someone(walk: Walk) -> bool:
    return any(envoy.alive for envoy in walk.world.envoys)


class Walk(RuleBasedStateMachine):
    """One rule is one thing that happens to the relay or to an Envoy."""

    @initialize(random=st.randoms(use_true_random=False))
    def begin(self, random: Random) -> None:
        self.world = World(random)

    def living(self, data: st.DataObject) -> Envoy:
        """Any of them; drawn by number, which is what a failure then shows."""
        found = [one for one in self.world.envoys if one.alive]
        return found[data.draw(st.integers(0, len(found) - 1))]

    @precondition(lambda self: self.world.up is None)
    @rule()
    def connect(self) -> None:
        self.world.connect()

    @precondition(lambda self: self.world.up is not None)
    @rule()
    def disconnect(self) -> None:
        self.world.disconnect()

    @precondition(lambda self: self.world.up is not None)
    @rule(type_url=st.sampled_from(TYPES), resources=CONTENTS)
    def respond(self, type_url: str, resources: frozenset[bytes]) -> None:
        if type_url in self.world.told:
            self.world.respond(type_url, resources)

    @precondition(lambda self: self.world.up is not None and self.world.last)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        type_url = data.draw(st.sampled_from(sorted(self.world.last)))
        if type_url in self.world.told:
            self.world.respond(type_url, self.world.last[type_url].content[1])

    @precondition(lambda self: len(self.world.envoys) < 2)
    @rule(names=NAMES, again=st.booleans())
    def start(self, names: tuple[str, ...], again: bool) -> None:
        """An epoch with a new number, or with one that an Envoy long gone had."""
        used = [envoy.epoch for envoy in self.world.envoys]
        envoy = self.world.start(max(used, default=-1) + 1 if used or again else 7)
        for type_url in TYPES:
            envoy.wish(type_url, names)

    @precondition(someone)
    @rule(data=st.data(), type_url=st.sampled_from(TYPES), names=NAMES)
    def ask(self, data: st.DataObject, type_url: str, names: tuple[str, ...]) -> None:
        self.living(data).wish(type_url, names)

    @precondition(someone)
    @rule(data=st.data(), count=st.integers(1, 4))
    def read(self, data: st.DataObject, count: int) -> None:
        envoy = self.living(data)
        for _ in range(min(count, len(envoy.outbox))):
            self.world.read(envoy)

    @precondition(someone)
    @rule(data=st.data(), refuse=st.booleans())
    def process(self, data: st.DataObject, refuse: bool) -> None:
        envoy = self.living(data)
        if envoy.inbox:
            envoy.process(refuse=refuse)

    @precondition(someone)
    @rule(data=st.data(), refuse=st.booleans())
    def answer(self, data: st.DataObject, refuse: bool) -> None:
        """All that is under way."""
        envoy = self.living(data)
        for _ in range(len(envoy.inbox)):
            envoy.process(refuse=refuse)
        while envoy.outbox:
            self.world.read(envoy)

    @precondition(someone)
    @rule(data=st.data())
    def live(self, data: st.DataObject) -> None:
        envoy = self.living(data)
        if not envoy.live:
            self.world.live(envoy)

    @precondition(someone)
    @rule(data=st.data(), expected=st.sampled_from([False, False, True]), closed_first=st.booleans())
    def die(self, data: st.DataObject, expected: bool, closed_first: bool) -> None:
        self.world.die(self.living(data), expected=expected, closed_first=closed_first)

    @precondition(lambda self: any(envoy.pending for envoy in self.world.envoys))
    @rule(data=st.data())
    def notice(self, data: st.DataObject) -> None:
        found = [one for one in self.world.envoys if one.pending]
        self.world.notice(found[data.draw(st.integers(0, len(found) - 1))])

    @precondition(someone)
    @rule(data=st.data())
    def reconnect(self, data: st.DataObject) -> None:
        self.world.reconnect(self.living(data))

    @precondition(lambda self: self.world.machine.next_tick() is not None)
    @rule(seconds=st.sampled_from([1.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(from_disk=st.booleans())
    def restart_relay(self, from_disk: bool) -> None:
        self.world.restart_relay(from_disk=from_disk)

    @invariant()
    def all_names_are_told(self) -> None:
        self.world.check_always()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def start(world: World, random: Random) -> None:
    used = [envoy.epoch for envoy in world.envoys]
    if len(used) < 2:
        envoy = world.start(max(used) + 1 if used else random.choice([0, 7]))
        names = tuple(random.sample("abc", random.randint(0, 3)))
        for type_url in TYPES:
            envoy.wish(type_url, names)


def respond(world: World, random: Random) -> None:
    """Few contents, so that the same ones come again."""
    type_url = random.choice(TYPES)
    if world.up is None:
        world.connect()
    elif type_url in world.told:
        world.respond(type_url, frozenset(random.sample(RESOURCES[:2], random.randint(0, 2))))


def answer(world: World, envoy: Envoy, random: Random) -> None:
    refuse = random.random() < 0.3
    for _ in range(random.randint(0, len(envoy.inbox))):
        envoy.process(refuse=refuse)
    for _ in range(random.randint(0, len(envoy.outbox))):
        world.read(envoy)


def reach(world: World, envoy: Envoy, random: Random) -> None:
    if not envoy.live:
        world.live(envoy)


def notice(world: World, random: Random) -> None:
    if dead := [envoy for envoy in world.envoys if envoy.pending]:
        world.notice(random.choice(dead))


def wait(world: World, random: Random) -> None:
    if world.machine.next_tick() is not None:
        world.wait(random.choice([1.0, 30.0]))


def disconnect(world: World, random: Random) -> None:
    if world.up is not None:
        world.disconnect()


# What happens, and how often.
TO_THE_WORLD: dict[Callable[[World, Random], None], float] = {
    start: 2,
    respond: 4,
    notice: 2,
    wait: 1,
    disconnect: 0.5,
    lambda world, random: world.restart_relay(from_disk=random.random() < 0.3): 0.2,
}
TO_AN_ENVOY: dict[Callable[[World, Envoy, Random], None], float] = {
    answer: 7,
    reach: 1,
    lambda world, envoy, random: envoy.wish(random.choice(TYPES), tuple(random.sample("abc", random.randint(0, 3)))): 1,
    lambda world, envoy, random: world.reconnect(envoy): 0.5,
    lambda world, envoy, random: world.die(
        envoy, expected=random.random() < 0.3, closed_first=random.random() < 0.5
    ): 0.7,
}


@pytest.mark.parametrize("seed", range(4))
def test_long_walks_on_which_something_happens_at_each_step(seed: int) -> None:
    random = Random(seed)
    for _ in range(100):
        world = World(random)
        for _ in range(random.choice([20, 60, 150])):
            living = [envoy for envoy in world.envoys if envoy.alive]
            if living and random.random() < 0.5:
                (act,) = random.choices(list(TO_AN_ENVOY), list(TO_AN_ENVOY.values()))
                act(world, random.choice(living), random)
            else:
                (turn,) = random.choices(list(TO_THE_WORLD), list(TO_THE_WORLD.values()))
                turn(world, random)
            world.check_always()
        world.settle()
