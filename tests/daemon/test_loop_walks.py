"""The run loop and the drain against their promises, for any sequence of events, on a clock that waits for nobody."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kumadp.core.events import ApplicationEnded, PartEnded, Rejected, Requested, SignalReceived
from kumadp.core.phases import Phase
from kumadp.daemon.drain import ADMIN_DEADLINE
from kumadp.daemon.loop import RunLoop
from kumadp.errors import ChildFailed, ControlPlaneRefused, ExitCode
from tests.daemon.test_loop import RememberingDaemon
from tests.support.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from kumadp.core.events import Event, Outcome

STOPS = (signal.SIGTERM, signal.SIGINT)
# Turns of the loop after an event: what follows from it at once has happened then.
_TURNS = 25


class Run(RuleBasedStateMachine):
    """A daemon that does nothing, driven by the real run loop through the real steps of the drain."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        asyncio.set_event_loop(self.loop)
        self.daemon = RememberingDaemon()
        self.outcome: asyncio.Task[Outcome] | None = None
        self.stops = 0
        self.causes: list[str] = []
        self.draining_since: float | None = None
        self.hurried = False
        self.longest = 0.0

    @initialize(
        application=st.sampled_from(["none", "none", "runs"]),
        drain_time=st.sampled_from([5.0, 30.0, 30.0, 0.0]),
        at_least=st.sampled_from([None, None, 5.0, 0.0]),
        announced=st.sampled_from([0.0, 3.0]),
        hang_stop=st.booleans(),
        fail_admin=st.booleans(),
    )
    def begin(
        self,
        application: str,
        drain_time: float,
        at_least: float | None,
        announced: float,
        hang_stop: bool,
        fail_admin: bool,
    ) -> None:
        daemon = self.daemon
        daemon.application = application  # type: ignore[assignment]
        daemon.drain_time, daemon.min_drain_time, daemon.pre_drain_delay = drain_time, at_least, announced
        daemon.hang_stop, daemon.fail_admin = hang_stop, fail_admin
        self.longest = announced + ADMIN_DEADLINE + drain_time
        self.run_loop = RunLoop(daemon)
        self.outcome = self.loop.create_task(self.run_loop.run())
        self._turn()
        assert daemon.status.phase is Phase.READY

    def _turn(self, seconds: float = 0.0) -> None:
        async def pass_() -> None:
            if seconds:
                await asyncio.sleep(seconds)
            for _ in range(_TURNS):
                await asyncio.sleep(0)

        self.loop.run_until_complete(pass_())
        if self.daemon.status.phase is Phase.DRAINING and self.draining_since is None and not seconds:
            self.draining_since = self.loop.time()

    def _post(self, event: Event) -> None:
        self.run_loop.post(event)
        self._turn()

    @property
    def ended(self) -> bool:
        return self.outcome is not None and self.outcome.done()

    @property
    def leaving(self) -> bool:
        return self.daemon.status.phase in {Phase.STOPPING, Phase.STOPPED}

    @precondition(lambda self: not self.ended)
    @rule(number=st.sampled_from(STOPS))
    def stop_signal(self, number: signal.Signals) -> None:
        self.stops += 1
        self.causes.append("signal")
        self.hurried = self.hurried or self.stops > 1
        self._post(SignalReceived(number))

    @precondition(lambda self: not self.ended)
    @rule()
    def drain_inbound(self) -> None:
        """SIGUSR2: a later stop waits for nothing."""
        self._post(SignalReceived(signal.SIGUSR2))
        if not self.leaving and self.daemon.envoy_runs:
            assert self.daemon.inbound_drained

    @precondition(lambda self: not self.ended)
    @rule(number=st.sampled_from([signal.SIGHUP, signal.SIGUSR1]))
    def requested_by_signal(self, number: signal.Signals) -> None:
        before = len(self.daemon.calls)
        phase = self.daemon.status.phase
        self._post(SignalReceived(number))
        done = [call for call in self.daemon.calls[before:] if call.startswith(("reload", "reexec"))]
        # What drains or stops begins nothing new.
        assert len(done) == (1 if phase is Phase.READY else 0)

    @precondition(lambda self: not self.leaving)
    @rule()
    def requested_with_an_answer(self) -> None:
        async def future() -> asyncio.Future[str]:
            return asyncio.get_running_loop().create_future()

        answer = self.loop.run_until_complete(future())
        self._post(Requested("reload", "a test", answer))
        assert answer.done(), "whoever requests something gets an answer"
        answer.exception()

    @precondition(lambda self: not self.ended and self.daemon.application == "runs")
    @rule()
    def application_ends(self) -> None:
        self.daemon.application = "ended"
        self.causes.append("application")
        self.hurried = True
        self._post(ApplicationEnded("the application ended"))

    @precondition(lambda self: not self.ended and self.daemon.envoy_runs and self.loop.time() > 8)
    @rule(given_up=st.booleans())
    def envoy_ends(self, given_up: bool) -> None:
        self.daemon.envoy_runs = False
        self.hurried = True
        self.daemon.gone.set()
        if given_up:
            self.causes.append("envoy")
            self._post(PartEnded("envoy", ChildFailed("envoy: budget spent")))
        else:
            self._turn()

    @precondition(lambda self: not self.ended and self.loop.time() > 4)
    @rule()
    def another_part_ends(self) -> None:
        self._post(PartEnded("dns", RuntimeError("a bug")))

    @precondition(lambda self: not self.ended)
    @rule()
    def rejected(self) -> None:
        if self.daemon.status.phase is not Phase.DRAINING:
            self.causes.append("rejected")
        self._post(Rejected(ControlPlaneRefused("token expired")))

    @precondition(lambda self: not self.ended)
    @rule()
    def nobody_is_connected(self) -> None:
        self.daemon.is_idle.set()
        self._turn()

    @rule(seconds=st.sampled_from([0.5, 4.0, 4.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self._turn(seconds)

    @invariant()
    def promises(self) -> None:
        if self.outcome is None:
            return
        calls = self.daemon.calls
        assert calls.count("stop") <= 1
        assert calls.count("fail health checks") <= 1
        assert "kill" not in calls or self.stops >= 3
        if not self.causes:
            assert self.daemon.status.phase is Phase.READY, "it ends by an event alone"
        if "fail health checks" in calls:
            assert "stop" not in calls[: calls.index("fail health checks")]
        since = self.draining_since
        if since is not None and not self.leaving:
            assert self.loop.time() <= since + self.longest + 0.01, "a drain has an end"
        if since is not None and self.leaving and not self.hurried and not self.daemon.is_idle.is_set():
            least = self.daemon.pre_drain_delay + self.daemon.drain_time
            assert self.loop.time() >= since + least, "requests in flight get all of the drain time"
            self.draining_since = None
        if self.outcome.done():
            self._check_outcome(self.outcome.result())

    def _check_outcome(self, outcome: Outcome) -> None:
        assert (outcome.code is ExitCode.FORCED) == ("kill" in self.daemon.calls)
        if outcome.code is ExitCode.FORCED:
            return
        assert self.daemon.calls[-1] == "stop" or "stop" in self.daemon.calls
        assert self.daemon.status.phase is Phase.STOPPED
        allowed = {
            "signal": {ExitCode.OK},
            "application": {ExitCode.OK},
            "envoy": {ExitCode.CHILD_FAILED},
            "rejected": {ExitCode.CONTROL_PLANE_REFUSED},
        }
        assert outcome.code in set().union(*(allowed[cause] for cause in self.causes))
        if len(self.causes) == 1:
            assert outcome.code in allowed[self.causes[0]]

    def teardown(self) -> None:
        """Whatever happened: three signals end it, and nothing is left running."""
        try:
            if self.outcome is not None:
                for _ in range(3):
                    if not self.ended:
                        self.stop_signal(signal.SIGTERM)
                        self.promises()
                assert self.ended
                self.promises()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self._turn()
            for number in (*STOPS, signal.SIGQUIT, signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1):
                self.loop.remove_signal_handler(number)
            with contextlib.suppress(RuntimeError):
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            asyncio.set_event_loop(None)


Run.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestRun = Run.TestCase
