"""The restart policy against its promises, for any sequence of lives and deaths of a child."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kumadp.process.restart_policy import GiveUp, RestartAfter, RestartPolicy, Restarts, Run, decide

SECONDS = st.one_of(st.sampled_from([0.0, 0.1, 9.9, 10.0, 30.0, 59.9, 60.0, 300.0]), st.floats(0, 400, allow_nan=False))


class Child(RuleBasedStateMachine):
    """A child that lives and dies; what the policy promises is computed here from all that happened."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = RestartPolicy(budget=0)
        self.restarts = Restarts()
        self.now = 0.0
        self.restarted_at: list[float] = []
        self.delays: list[float] = []
        self.given_up = False

    @initialize(
        budget=st.integers(0, 6),
        window=st.sampled_from([10.0, 300.0]),
        base=st.sampled_from([0.05, 1.0]),
        cap=st.sampled_from([1.0, 8.0]),
    )
    def begin(self, budget: int, window: float, base: float, cap: float) -> None:
        self.policy = RestartPolicy(budget=budget, window=window, base=base, cap=cap)

    @precondition(lambda self: not self.given_up)
    @rule(ran=SECONDS, part=st.sampled_from([0.0, 0.5, 1.0]))
    def ends(self, ran: float, part: float) -> None:
        """It ran, did its job for a part of that time, and ended."""
        self.now += ran
        served = ran * part
        if ran >= self.policy.stable:
            self.restarted_at = []
        counted = [at for at in self.restarted_at if self.now - at < self.policy.window]
        decision = decide(self.restarts, self.now, Run(ran, served), self.policy)
        if isinstance(decision, GiveUp):
            # It is given up for one reason only.
            assert len(counted) >= self.policy.budget
            assert decision.reason
            self.given_up = True
            return
        assert len(counted) < self.policy.budget
        self._check(decision, ran, served, counted)
        self.restarts = decision.restarts
        self.restarted_at.append(self.now)
        self.now += decision.delay

    @precondition(lambda self: self.given_up)
    @rule()
    def begins_again(self) -> None:
        """Somebody starts kumadp again."""
        self.restarts, self.restarted_at, self.delays, self.given_up = Restarts(), [], [], False

    def _check(self, decision: RestartAfter, ran: float, served: float, counted: list[float]) -> None:
        policy, delay = self.policy, decision.delay
        assert delay == 0.0 or policy.base <= delay <= policy.cap or delay == policy.cap
        if served >= policy.settled or ran >= policy.stable or not counted:
            assert delay == 0.0
        is_early = served < policy.settled and ran < policy.stable
        if not is_early or len(counted) < len(self.restarted_at):
            self.delays = []
        # As long as nothing is forgotten, each early death waits at least as long as the one before.
        assert not is_early or not self.delays or delay >= self.delays[-1]
        self.delays = [*self.delays, delay] if is_early else []
        # What is kept is bounded, and in order.
        times = decision.restarts.times
        assert len(times) <= policy.budget
        assert list(times) == sorted(times)
        assert times[-1] == self.now
        assert decision.restarts.early <= len(times)

    def teardown(self) -> None:
        """One that goes on dying at once is given up after its budget, and one of budget 0 is never restarted."""
        for _ in range(self.policy.budget + 1):
            if not self.given_up:
                self.ends(0.0, 0.0)
        assert self.given_up or self.policy.cap * self.policy.budget >= self.policy.window


Child.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestChild = Child.TestCase
