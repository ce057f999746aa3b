"""The relay's state machine among a control plane and Envoys that do anything they may, in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.relay.harness import any_of
from tests.relay.world import NAMED, TYPES, Envoy, Session, World

if TYPE_CHECKING:
    from random import Random

NAMES = st.lists(st.sampled_from("abc"), unique=True, max_size=3).map(tuple)
CONTENTS = st.frozensets(st.sampled_from([any_of(name, body) for name in "abc" for body in "xy"]), max_size=3)


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
            self.wish(envoy, type_url, names)

    @precondition(someone)
    @rule(data=st.data(), type_url=st.sampled_from(TYPES), names=NAMES)
    def ask(self, data: st.DataObject, type_url: str, names: tuple[str, ...]) -> None:
        self.wish(self.living(data), type_url, names)

    @staticmethod
    def wish(envoy: Envoy, type_url: str, names: tuple[str, ...]) -> None:
        wanted = names if type_url in NAMED else ()
        session = envoy.sessions.get(type_url)
        if session is None and (wanted or type_url not in NAMED):
            envoy.sessions[type_url] = Session(wanted)
            envoy.request(type_url)
        elif session is not None and session.names != wanted:
            session.names = wanted
            envoy.request(type_url)

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
    max_examples=120,
    stateful_step_count=60,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
