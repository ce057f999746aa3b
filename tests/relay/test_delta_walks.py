"""Delta between models: the dialect beside what a control plane counts, and the translation that Envoy ends up with."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.relay.delta_simulation import BAD, DeltaSimulation, serve, some, walk
from tests.relay.harness import CLUSTER, ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Callable

VERSIONS = ("2.8", "2.14", "3.0")
# What Envoy rejects is one in six.
BODY = ("x", "x", "y", "y", "z", BAD)
BODIES = st.sampled_from(["x", "y", "z", BAD])
CLUSTERS = st.dictionaries(st.sampled_from(["a", "b", "c", "s"]), BODIES, max_size=4)
LISTENERS = st.dictionaries(st.sampled_from(["l", "m", "t"]), BODIES, max_size=3)


class TranslationWalk(RuleBasedStateMachine):
    """Whatever the control plane did, Envoy's set is the control plane's at rest."""

    @initialize(seed=st.integers(0, 1000), version=st.sampled_from(VERSIONS))
    def begin(self, seed: int, version: str) -> None:
        # One number, since the order of messages is drawn often.
        self.simulation = DeltaSimulation(Random(seed), version)
        self.simulation.start()

    @rule(clusters=CLUSTERS, endpoint=BODIES, listeners=LISTENERS)
    def serve(self, clusters: dict[str, str], endpoint: str, listeners: dict[str, str]) -> None:
        serve(self.simulation, clusters, endpoint, listeners)

    @rule()
    def connect(self) -> None:
        if self.simulation.server is None:
            self.simulation.connect()

    @rule()
    def disconnect(self) -> None:
        self.simulation.disconnect()

    @rule(version=st.sampled_from(VERSIONS))
    def upgrade(self, version: str) -> None:
        self.simulation.upgrade(version)

    @rule()
    def start(self) -> None:
        self.simulation.start()

    @rule()
    def reconnect(self) -> None:
        self.simulation.reconnect()

    @rule()
    def live(self) -> None:
        self.simulation.live()

    @rule()
    def restart_relay(self) -> None:
        self.simulation.restart_relay()

    @rule(count=st.sampled_from([1, 2, 5, 20]))
    def pump(self, count: int) -> None:
        self.simulation.pump(count)

    @rule()
    def rest(self) -> None:
        self.simulation.settle()
        self.simulation.assert_translated()

    def teardown(self) -> None:
        if hasattr(self, "simulation"):
            self.rest()


TestTranslation = TranslationWalk.TestCase
TestTranslation.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


# Events and their weights.
EVENTS: dict[Callable[[DeltaSimulation, Random], None], float] = {
    lambda simulation, random: serve(
        simulation, some("abcs", BODY, random), random.choice(BODY), some("lmt", BODY, random)
    ): 3,
    lambda simulation, random: simulation.pump(random.randint(1, 20)): 6,
    lambda simulation, random: simulation.connect() if simulation.server is None else None: 2,
    lambda simulation, _random: simulation.disconnect(): 0.5,
    lambda simulation, random: simulation.upgrade(random.choice(VERSIONS)): 0.3,
    lambda simulation, _random: simulation.start(): 0.3,
    lambda simulation, _random: simulation.reconnect(): 0.3,
    lambda simulation, _random: simulation.restart_relay(): 0.2,
    lambda simulation, _random: simulation.live(): 1,
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("version", VERSIONS)
def test_long_random_histories_are_translated(version: str, seed: int) -> None:
    random = Random(seed)
    for _ in range(40):
        walk(DeltaSimulation(random, version), random, EVENTS)


def test_endpoints_that_are_sent_again_unchanged_never_reach_envoy() -> None:
    simulation = DeltaSimulation(Random(1), "3.0")
    serve(simulation, {"a": "x", "b": "x"}, "x", {"l": "x"})
    simulation.start()
    simulation.settle()
    simulation.sent_down.clear()
    # 3.0 sends all endpoints again when any cluster changes, and on each new stream.
    serve(simulation, {"a": "x", "b": "x", "s": "x"}, "x", {"l": "x"})
    simulation.settle()
    simulation.disconnect()
    simulation.settle()
    simulation.assert_translated()
    assert simulation.sent_down == [(CLUSTER, ("a", "b", "s"))]
    # A changed cluster warms until it gets its endpoints, which have not changed.
    serve(simulation, {"a": "y", "b": "x", "s": "x"}, "x", {"l": "x"})
    simulation.settle()
    simulation.assert_translated()
    assert simulation.sent_down[1:] == [(CLUSTER, ("a", "b", "s")), (ENDPOINTS, ("a",))]
