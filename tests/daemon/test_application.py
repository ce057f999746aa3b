"""When the application ends, and when we do: the drain as it is planned, and the run loop that walks it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from kumadp.core.context import Context, Inputs
from kumadp.core.events import ApplicationEnded, Outcome, PartEnded, SignalReceived
from kumadp.core.phases import Phase
from kumadp.daemon.application import ApplicationPart
from kumadp.daemon.drain import (
    Announce,
    DrainInbound,
    EndApplication,
    FailHealthChecks,
    Step,
    Wait,
    plan_drain,
)
from kumadp.errors import ChildFailed, ExitCode
from kumadp.process.application import exit_code_of
from kumadp.process.exit_status import ExitStatus
from kumadp.settings.resolve import resolve
from tests.daemon.test_loop import RememberingDaemon, ready, until

if TYPE_CHECKING:
    from typing import Literal


@pytest.mark.parametrize(
    ("envoy_runs", "inbound_drained", "application", "steps"),
    [
        (True, False, "runs", (DrainInbound(), Wait(30, 5, "inbound"), EndApplication())),
        (True, True, "runs", (EndApplication(),)),
        (False, False, "runs", (EndApplication(),)),
        (True, False, "ended", (FailHealthChecks(), Wait(30, 0.0, "outbound"))),
        (True, True, "ended", (FailHealthChecks(), Wait(30, 0.0, "outbound"))),
        (False, False, "ended", ()),
        (True, False, "none", (FailHealthChecks(), Wait(30, 5))),
    ],
)
def test_what_a_stop_takes(
    envoy_runs: bool, inbound_drained: bool, application: Literal["none", "runs", "ended"], steps: tuple[Step, ...]
) -> None:
    planned = plan_drain(
        envoy_runs=envoy_runs,
        inbound_drained=inbound_drained,
        drain_time=30,
        min_drain_time=5,
        application=application,
    )
    assert planned == steps


def test_with_an_application_too_readiness_changes_first() -> None:
    planned = plan_drain(envoy_runs=True, inbound_drained=False, drain_time=30, pre_drain_delay=2, application="runs")
    assert planned == (Announce(2), DrainInbound(), Wait(30, None, "inbound"), EndApplication())


async def test_a_stop_drains_inbound_and_then_ends_the_application() -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    daemon.application = "runs"
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGQUIT))
    assert (await run).code is ExitCode.OK
    assert daemon.calls == ["start", "drain inbound", "end application", "stop"]


async def test_the_end_of_the_application_is_ours() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    daemon.application = "ended"
    daemon.is_idle.set()
    loop, run = await ready(daemon)
    loop.post(ApplicationEnded("the application ended with exit code 7"))
    assert await run == Outcome(ExitCode.OK, "the application ended with exit code 7")
    assert daemon.calls == ["start", "fail health checks", "stop"]


async def test_the_end_of_the_application_cuts_a_drain_short() -> None:
    daemon = RememberingDaemon(drain_time=3600)
    daemon.application = "runs"
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGTERM))
    await until("drain inbound", daemon)
    loop.post(ApplicationEnded("the application ended with exit code 7"))
    assert (await run).code is ExitCode.OK


async def test_what_is_the_application_s_does_nothing_here() -> None:
    daemon = RememberingDaemon(drain_time=0.01)
    daemon.taken = {signal.SIGHUP}
    loop, run = await ready(daemon)
    loop.post(SignalReceived(signal.SIGHUP))
    loop.post(SignalReceived(signal.SIGTERM))
    await run
    assert "reload: SIGHUP" not in daemon.calls


@pytest.mark.parametrize(
    ("status", "code"), [(ExitStatus(0, None), 0), (ExitStatus(7, None), 7), (ExitStatus(None, signal.SIGTERM), 143)]
)
def test_exit_codes_are_those_of_a_shell(status: ExitStatus, code: int) -> None:
    assert exit_code_of(status) == code


def make_part(*command_line: str, **flags: str) -> tuple[Context, ApplicationPart]:
    given = {"name": "web", "mesh": "default", **flags}
    settings = resolve("run", given, {}).settings
    context = Context(Inputs(settings, None, {"PATH": "/usr/bin:/bin"}, command_line=command_line))
    application = ApplicationPart(context)
    context.status.add_section(application.status)
    return context, application


async def test_without_a_command_line_there_is_none() -> None:
    context, application = make_part()
    application.begin()
    context.status.move(Phase.READY, "all up")
    assert application.state == "none"
    assert not application.takes(signal.SIGHUP)
    assert "application" not in context.status.snapshot()
    await application.end()
    assert await application.conclude(Outcome(ExitCode.OK, "stopped")) == Outcome(ExitCode.OK, "stopped")


@pytest.mark.parametrize("stopped", [False, True])
async def test_it_is_not_started_at_once_after_a_stop(stopped: bool) -> None:
    context, application = make_part("sleep", "60", application_start="at-once")
    if stopped:
        context.status.move(Phase.DRAINING, "stop requested by signal")
    application.begin()
    assert application.state == ("none" if stopped else "runs")
    await application.end()


async def test_it_starts_once_and_its_code_goes_before_ours() -> None:
    context, application = make_part("sh", "-c", "exit 4")
    application.begin()
    context.status.move(Phase.READY, "all up")
    assert await context.events.get() == ApplicationEnded("the application ended with exit code 4")
    context.status.move(Phase.STARTING, "Envoy died")
    context.status.move(Phase.READY, "all up")
    assert application.state == "ended"
    assert (await application.conclude(Outcome(ExitCode.OK, "stopped"))).code == 4
    failed = Outcome(ExitCode.CHILD_FAILED, "Envoy ended")
    assert await application.conclude(failed) == failed
    assert await application.conclude(Outcome(ExitCode.FORCED, "")) == Outcome(ExitCode.FORCED, "")


async def test_the_status_shows_it_without_what_it_was_given() -> None:
    context, application = make_part("sleep", "1000")
    shown = context.status.snapshot
    assert shown()["application"] == {"state": "WAITING", "pid": None, "started": None, "ended": ""}
    context.status.move(Phase.READY, "all up")
    assert "1000" not in str(shown()["application"])
    assert application.takes(signal.SIGHUP)
    await application.end()
    reported = shown()["application"]
    assert isinstance(reported, dict)
    assert (reported["state"], reported["ended"]) == ("ENDED", "signal 1 (HUP)")


async def test_one_that_went_away_since_the_start_is_our_failure() -> None:
    context, _application = make_part("/no/such/program")
    context.status.move(Phase.READY, "all up")
    event = await context.events.get()
    assert isinstance(event, PartEnded)
    assert event.name == "application"
    assert getattr(event.error, "exit_code", None) == ExitCode.OS


@pytest.mark.parametrize(("flag", "ends"), [("stop", True), ("leave", False)])
async def test_what_becomes_of_it_when_we_fail(flag: str, ends: bool) -> None:
    context, application = make_part("sleep", "1000", on_sidecar_end=flag)
    context.status.move(Phase.READY, "all up")
    # A control plane that refuses permanently has us drain first.
    assert application.drained_as(failed=True) == ("runs" if ends else "none")
    assert application.drained_as(failed=False) == "runs"
    await application.stop(Outcome(ChildFailed.exit_code, "Envoy ended"))
    assert (application.state == "ended") is ends
    application.kill()
    await application.end()
