"""The run loop with a daemon that only remembers its calls."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Literal

import pytest

from kumadp.core.events import PartEnded, PreviousKnown, Rejected, Requested, SignalReceived, StartEnded, WatchdogTick
from kumadp.core.phases import IllegalMove, Phase, check_move
from kumadp.core.status import Status
from kumadp.daemon.drain import Announce, FailHealthChecks, Step, Wait, plan_drain
from kumadp.daemon.loop import RunLoop
from kumadp.errors import ChildFailed, ControlPlaneRefused, ExitCode, KumadpError, PortsTaken, Problem

if TYPE_CHECKING:
    from kumadp.core.events import Event, Outcome


class RememberingDaemon:
    def __init__(self, drain_time: float = 30.0) -> None:
        self.status = Status("backend-01", "standalone")
        self.calls: list[str] = []
        self.drain_time = drain_time
        self.envoy_runs = True
        self.fail_start: Exception | None = None
        self.fail_admin = False
        self.hang_stop = self.hang_reload = False
        self.gone = asyncio.Event()
        self.is_idle = asyncio.Event()
        self.min_drain_time: float | None = None
        self.pre_drain_delay = 0.0
        self.inbound_drained = False
        self.refuse: Exception | None = None
        self.fail_stop: Exception | None = None
        self.application: Literal["none", "runs", "ended"] = "none"
        self.taken: set[int] = set()
        self.looks_back = False
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    @property
    def serves(self) -> bool:
        return self.envoy_runs

    async def start(self) -> None:
        self.calls.append("start")
        if self.fail_start is not None:
            raise self.fail_start
        self.status.move(Phase.READY, "all up")

    async def stop(self, outcome: Outcome) -> None:
        self.calls.append("stop")
        if self.fail_stop is not None:
            raise self.fail_stop
        if self.hang_stop:
            await asyncio.Event().wait()

    def kill(self) -> None:
        self.calls.append("kill")

    def drain_steps(self, failed: bool) -> tuple[Step, ...]:
        return plan_drain(
            envoy_runs=self.envoy_runs,
            inbound_drained=self.inbound_drained,
            drain_time=self.drain_time,
            min_drain_time=self.min_drain_time,
            pre_drain_delay=self.pre_drain_delay,
            application=self.application,
        )

    async def fail_health_checks(self) -> None:
        self.calls.append("fail health checks")
        if self.fail_admin:
            raise OSError("connection refused")

    def note_inbound_drain(self) -> None:
        self.inbound_drained = True

    async def drain_inbound(self) -> None:
        self.calls.append("drain inbound")

    async def change_drain(self, what: str) -> str:
        self.calls.append(what)
        return "done"

    async def envoy_gone(self) -> None:
        await self.gone.wait()

    async def end_application(self) -> None:
        self.calls.append("end application")

    def takes(self, number: int) -> bool:
        return number in self.taken

    async def idle(self, direction: str) -> None:
        await self.is_idle.wait()

    def is_essential(self, part: str) -> bool:
        return part == "envoy"

    async def reload(self, why: str) -> str:
        self.calls.append(f"reload: {why}")
        if self.refuse is not None:
            raise self.refuse
        if self.hang_reload:
            try:
                await asyncio.Event().wait()
            finally:
                self.calls.append("reload ended")
        return "epoch 1 serves"

    async def reexec(self, why: str) -> str:
        self.calls.append(f"reexec: {why}")
        return "done"

    def beat(self) -> None:
        self.calls.append("beat")


async def until(condition: object, daemon: RememberingDaemon) -> None:
    async with asyncio.timeout(10):
        while condition not in (daemon.status.phase, *daemon.calls):
            await asyncio.sleep(0)


async def ready(daemon: RememberingDaemon) -> tuple[RunLoop, asyncio.Task[Outcome]]:
    loop = RunLoop(daemon)
    run = asyncio.create_task(loop.run())
    await until(Phase.READY, daemon)
    return loop, run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_real_signal_drains_then_stops_with_0(number: int) -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    _, run = await ready(daemon)
    os.kill(os.getpid(), number)
    outcome = await run
    assert outcome.code is ExitCode.OK
    assert daemon.calls == ["start", "fail health checks", "stop"]
    assert daemon.status.phase is Phase.STOPPED


async def test_the_wait_happens_even_when_the_admin_call_fails() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    daemon.fail_admin = True
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    await until("fail health checks", daemon)
    for _ in range(100):
        await asyncio.sleep(0)
    assert daemon.status.phase is Phase.DRAINING
    daemon.gone.set()
    assert (await run).code is ExitCode.OK


async def test_a_second_signal_cuts_the_drain_short_and_a_third_forces() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    daemon.hang_stop = True
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    await until(Phase.DRAINING, daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    await until(Phase.STOPPING, daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    outcome = await run
    assert outcome.code is ExitCode.FORCED
    assert daemon.calls[-1] == "kill"


async def test_two_signals_at_once_cut_a_drain_short_that_has_not_begun() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    loop.post(SignalReceived(signal.SIGTERM))
    async with asyncio.timeout(20):
        assert (await run).code is ExitCode.OK


async def test_sigusr2_drains_inbound_once_stays_ready_and_makes_the_later_stop_immediate() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGUSR2))
    loop.post(SignalReceived(signal.SIGUSR2))
    await until("drain inbound", daemon)
    assert daemon.status.ready_state == "READY"
    loop.post(SignalReceived(signal.SIGTERM))
    assert (await run).code is ExitCode.OK
    assert daemon.calls == ["start", "drain inbound", "stop"]


async def test_sigusr2_and_a_stop_at_once_wait_for_nothing_either() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGUSR2))
    loop.post(SignalReceived(signal.SIGTERM))
    async with asyncio.timeout(20):
        assert (await run).code is ExitCode.OK
    assert "fail health checks" not in daemon.calls


async def test_a_failed_start_ends_with_its_own_code_and_reason() -> None:
    daemon = RememberingDaemon()
    daemon.fail_start = ControlPlaneRefused("422: token is missing", "give --dataplane-token-file")
    outcome = await RunLoop(daemon).run()
    assert outcome.code is ExitCode.CONTROL_PLANE_REFUSED
    assert "422: token is missing" in outcome.why
    assert daemon.calls == ["start", "stop"]


async def test_each_of_several_problems_has_its_line(caplog: pytest.LogCaptureFixture) -> None:
    daemon = RememberingDaemon()
    daemon.fail_start = PortsTaken([Problem("probes.port", "9000 is held"), Problem("admin.port", "9901 is held")])
    outcome = await RunLoop(daemon).run()
    assert outcome.code is ExitCode.OS
    assert outcome.why == "2 problems, each named above, the first: probes.port: 9000 is held"
    reported = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert reported == ["probes.port: 9000 is held", "admin.port: 9901 is held"]


async def test_only_an_essential_part_ends_the_daemon() -> None:
    daemon = RememberingDaemon()
    loop, run = await ready(daemon)
    loop.post(PartEnded("virtual probes", OSError("gone")))
    loop.post(PartEnded("envoy", ChildFailed("Envoy ended 6 times: signal 11 (SEGV)")))
    outcome = await run
    assert outcome.code is ExitCode.CHILD_FAILED
    assert daemon.status.fatal == {"virtual probes": "gone"}


async def test_a_bug_while_starting_is_exit_code_1() -> None:
    daemon = RememberingDaemon()
    daemon.fail_start = KeyError("x")
    assert (await RunLoop(daemon).run()).code is ExitCode.BUG


def test_nothing_is_drained_without_envoy_or_after_sigusr2() -> None:
    assert plan_drain(envoy_runs=False, inbound_drained=False, drain_time=30) == ()
    assert plan_drain(envoy_runs=True, inbound_drained=True, drain_time=30) == ()
    assert plan_drain(envoy_runs=True, inbound_drained=False, drain_time=30) == (FailHealthChecks(), Wait(30))


def test_stopped_is_the_end() -> None:
    with pytest.raises(IllegalMove):
        check_move(Phase.STOPPED, Phase.STARTING)


async def test_envoy_that_ends_while_draining_before_it_was_up_is_a_clean_stop() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    await until(Phase.DRAINING, daemon)
    daemon.envoy_runs = False
    loop.post(StartEnded(ChildFailed("envoy ended with signal 15 (TERM)")))
    assert (await run).code is ExitCode.OK


@pytest.mark.parametrize(("number", "called"), [(signal.SIGHUP, "reload: SIGHUP"), (signal.SIGUSR1, "reexec: SIGUSR1")])
async def test_signals_request_a_new_epoch_or_a_new_kumadp(number: int, called: str) -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    loop, run = await ready(daemon)
    os.kill(os.getpid(), number)
    await until(called, daemon)
    assert daemon.status.phase is Phase.READY
    loop.post(SignalReceived(signal.SIGTERM))
    assert (await run).code is ExitCode.OK


async def test_the_outcome_is_the_answer_to_a_request_and_a_refusal_costs_only_itself() -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    loop, run = await ready(daemon)
    answers = [asyncio.get_running_loop().create_future() for _ in range(3)]
    loop.post(Requested("reload", "by hand", answers[0]))
    assert await answers[0] == "epoch 1 serves"
    daemon.refuse = KumadpError("the new epoch was not LIVE in time")
    loop.post(Requested("reload", "by hand", answers[1]))
    with pytest.raises(KumadpError, match="not LIVE"):
        await answers[1]
    assert daemon.status.phase is Phase.READY
    loop.post(SignalReceived(signal.SIGTERM))
    loop.post(Requested("reload", "too late", answers[2]))
    with pytest.raises(KumadpError, match="not while"):
        await answers[2]
    assert (await run).code is ExitCode.OK
    assert "reload: too late" not in daemon.calls


async def test_a_permanent_refusal_ends_it_with_its_code() -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    loop, run = await ready(daemon)
    loop.post(Rejected(ControlPlaneRefused("the token is for another mesh")))
    outcome = await run
    assert (outcome.code, outcome.why) == (ExitCode.CONTROL_PLANE_REFUSED, "the token is for another mesh")


async def test_a_permanent_refusal_drains_first_and_keeps_its_exit_code() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    loop, run = await ready(daemon)
    loop.post(Rejected(ControlPlaneRefused("the token was revoked")))
    loop.post(Rejected(ControlPlaneRefused("the token was revoked once more")))
    # A stop is requested: it goes on draining, and a second signal cuts it short as ever.
    loop.post(SignalReceived(signal.SIGTERM))
    await until("fail health checks", daemon)
    for _ in range(100):
        await asyncio.sleep(0)
    assert daemon.status.phase is Phase.DRAINING
    loop.post(SignalReceived(signal.SIGTERM))
    outcome = await run
    assert (outcome.code, outcome.why) == (ExitCode.CONTROL_PLANE_REFUSED, "the token was revoked")
    assert daemon.calls == ["start", "fail health checks", "stop"]


async def test_an_envoy_that_ends_in_the_drain_of_a_refusal_changes_nothing_of_the_exit_code() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    loop, run = await ready(daemon)
    loop.post(Rejected(ControlPlaneRefused("the token was revoked")))
    await until("fail health checks", daemon)
    loop.post(PartEnded("envoy", ChildFailed("envoy ended")))
    assert (await run).code is ExitCode.CONTROL_PLANE_REFUSED


async def test_a_permanent_refusal_does_not_cut_the_drain_of_a_stop_short() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    await until(Phase.DRAINING, daemon)
    loop.post(Rejected(ControlPlaneRefused("the token was revoked")))
    for _ in range(100):
        await asyncio.sleep(0)
    assert daemon.status.phase is Phase.DRAINING
    daemon.gone.set()
    assert (await run).code is ExitCode.OK


@pytest.mark.parametrize(
    ("failure", "reported"),
    [(OSError(28, "No space left on device", "/run/x.new"), "No space left"), (KeyError("x"), "a bug in kumadp")],
)
async def test_what_nobody_expected_is_the_answer_to_the_request_and_logged(
    failure: Exception, reported: str, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    daemon.refuse = failure
    loop, run = await ready(daemon)
    answer = asyncio.get_running_loop().create_future()
    loop.post(Requested("reload", "by hand", answer))
    async with asyncio.timeout(20):
        with pytest.raises(KumadpError, match=reported):
            await answer
    assert daemon.status.phase is Phase.READY
    assert any(reported in record.getMessage() for record in caplog.records if record.name.startswith("kumadp"))
    loop.post(SignalReceived(signal.SIGTERM))
    assert (await run).code is ExitCode.OK


async def test_a_stop_that_fails_ends_all_the_same_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    daemon.fail_stop = OSError(28, "No space left on device")
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    assert (await run).code is ExitCode.OK
    assert any(record.exc_info for record in caplog.records if record.name.startswith("kumadp"))


async def test_a_beat_is_taken_up_in_every_phase() -> None:
    daemon = RememberingDaemon(drain_time=30)
    daemon.hang_stop = True
    loop = RunLoop(daemon)
    run = asyncio.create_task(loop.run())
    for phase, ending in ((Phase.READY, 0), (Phase.DRAINING, 1), (Phase.STOPPING, 1)):
        for _ in range(ending):
            os.kill(os.getpid(), signal.SIGTERM)
        await until(phase, daemon)
        daemon.calls.clear()
        loop.post(WatchdogTick())
        await until("beat", daemon)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await run).code is ExitCode.FORCED


async def test_a_drain_ends_when_the_work_does_but_not_before_its_least_time() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    daemon.min_drain_time = 0.05
    daemon.is_idle.set()
    _, run = await ready(daemon)
    begun = asyncio.get_running_loop().time()
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await run).code is ExitCode.OK
    assert asyncio.get_running_loop().time() - begun >= 0.05


async def test_a_drain_with_work_goes_on_until_it_ends() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    daemon.min_drain_time = 0.0
    _, run = await ready(daemon)
    os.kill(os.getpid(), signal.SIGTERM)
    await until("fail health checks", daemon)
    assert not run.done()
    daemon.is_idle.set()
    assert (await run).code is ExitCode.OK


async def test_before_the_drain_everything_is_served_without_readiness() -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    daemon.pre_drain_delay = 3600
    _, run = await ready(daemon)
    os.kill(os.getpid(), signal.SIGTERM)
    await until(Phase.DRAINING, daemon)
    assert daemon.status.ready_state == "TERMINATING"
    assert "fail health checks" not in daemon.calls
    # A second signal cuts this short as well.
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await run).code is ExitCode.OK


@pytest.mark.parametrize(
    ("least", "delay", "steps"),
    [
        (None, 0.0, (FailHealthChecks(), Wait(30, None))),
        (5.0, 0.0, (FailHealthChecks(), Wait(30, 5.0))),
        (60.0, 0.0, (FailHealthChecks(), Wait(30, 30))),
        (0.0, 2.0, (Announce(2.0), FailHealthChecks(), Wait(30, 0.0))),
    ],
)
def test_the_steps_of_a_drain(least: float | None, delay: float, steps: tuple[Step, ...]) -> None:
    planned = plan_drain(
        envoy_runs=True, inbound_drained=False, drain_time=30, min_drain_time=least, pre_drain_delay=delay
    )
    assert planned == steps


class LookingBack(RememberingDaemon):
    """Starts as one does that follows a previous kumadp: what runs is known only after a while."""

    def __init__(self) -> None:
        super().__init__(drain_time=3600)
        self.looks_back = True
        self.envoy_runs = False
        self.look = asyncio.Event()
        self.loop = RunLoop(self)

    async def start(self) -> None:
        self.calls.append("start")
        await self.look.wait()
        if self.fail_start is not None:
            raise self.fail_start
        self.envoy_runs = True
        handled = asyncio.get_running_loop().create_future()
        self.loop.post(PreviousKnown(handled))
        await handled
        self.calls.append("phase after looking back: " + self.status.phase.value)
        await asyncio.Event().wait()


async def some_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_stop_before_it_is_known_what_serves_drains_what_serves() -> None:
    daemon = LookingBack()
    run = asyncio.create_task(daemon.loop.run())
    await until("start", daemon)
    daemon.loop.post(SignalReceived(signal.SIGTERM))
    await some_turns()
    assert daemon.status.phase is Phase.STARTING
    daemon.look.set()
    await until("phase after looking back: DRAINING", daemon)
    await until("fail health checks", daemon)
    daemon.gone.set()
    assert (await run).code is ExitCode.OK


async def test_signals_before_it_is_known_what_serves_are_all_handled_in_order() -> None:
    daemon = LookingBack()
    run = asyncio.create_task(daemon.loop.run())
    await until("start", daemon)
    for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM):
        daemon.loop.post(SignalReceived(number))
    await some_turns()
    assert daemon.calls == ["start"]
    daemon.look.set()
    # Inbound is drained, so the stop waits for nothing.
    assert (await run).code is ExitCode.OK
    assert daemon.inbound_drained
    assert "stop" in daemon.calls


async def test_a_second_stop_before_it_is_known_what_serves_cuts_the_drain_short() -> None:
    daemon = LookingBack()
    run = asyncio.create_task(daemon.loop.run())
    await until("start", daemon)
    daemon.loop.post(SignalReceived(signal.SIGTERM))
    daemon.loop.post(SignalReceived(signal.SIGTERM))
    daemon.look.set()
    assert (await run).code is ExitCode.OK
    assert "stop" in daemon.calls


async def test_a_third_stop_before_it_is_known_what_serves_forces() -> None:
    daemon = LookingBack()
    run = asyncio.create_task(daemon.loop.run())
    await until("start", daemon)
    for _ in range(3):
        daemon.loop.post(SignalReceived(signal.SIGTERM))
    assert (await run).code is ExitCode.FORCED
    assert "kill" in daemon.calls


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_start_that_fails_before_it_is_known_what_serves(stopped: bool) -> None:
    daemon = LookingBack()
    daemon.fail_start = PortsTaken([Problem("readiness", "taken")])
    run = asyncio.create_task(daemon.loop.run())
    await until("start", daemon)
    if stopped:
        daemon.loop.post(SignalReceived(signal.SIGTERM))
    daemon.look.set()
    assert (await run).code is (ExitCode.OK if stopped else ExitCode.OS)


async def test_a_start_that_fails_while_an_envoy_drains_does_not_cut_the_drain_short() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    await until("fail health checks", daemon)
    loop.post(StartEnded(ControlPlaneRefused("the control plane rejects this data plane")))
    await some_turns()
    assert daemon.status.phase is Phase.DRAINING
    daemon.gone.set()
    assert (await run).code is ExitCode.OK


async def test_sigusr2_without_an_envoy_is_not_taken_for_a_drain() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    daemon.envoy_runs = False
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGUSR2))
    await some_turns()
    daemon.envoy_runs = True
    loop.post(SignalReceived(signal.SIGTERM))
    await until("fail health checks", daemon)
    daemon.gone.set()
    assert (await run).code is ExitCode.OK


async def test_a_reload_under_way_ends_with_a_stop_and_its_request_has_an_answer() -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    daemon.hang_reload = True
    loop, run = await ready(daemon)
    answer = asyncio.get_running_loop().create_future()
    loop.post(Requested("reload", "test", answer))
    await until("reload: test", daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    assert (await run).code is ExitCode.OK
    assert daemon.calls[-2:] == ["reload ended", "stop"]
    with pytest.raises(KumadpError, match="everything stops"):
        await answer


async def test_one_more_signal_after_the_end_does_not_end_the_process() -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    _, run = await ready(daemon)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await run).code is ExitCode.OK
    # With the default action back, this would be the end of the tests.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    await some_turns()
