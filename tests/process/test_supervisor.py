"""A supervised child: brought up, restarted, given up, stopped; every state reported in order."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import AdminExposed, ChildFailed, SpawnError
from kumadp.process.child import Child, Command
from kumadp.process.restart_policy import ChildState, RestartPolicy
from kumadp.process.supervisor import ChildReport, PreviousDeaths, Supervisor, SupervisorOptions
from tests.support.hostile_clients import no_descriptors_left
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from kumadp.process.exit_status import ExitStatus

pytestmark = pytest.mark.process

QUICK = RestartPolicy(budget=2, base=0.001)
STAY = "echo up; exec sleep 60"
_NO_DEATHS = PreviousDeaths()


class Watched:
    """A supervisor of ``sh -c SCRIPT`` and its reports."""

    def __init__(
        self,
        script: str,
        policy: RestartPolicy = QUICK,
        bring_up: Callable[[Child], Awaitable[None]] | None = None,
        permanent: Callable[[ExitStatus, list[str]], str | None] = lambda _status, _lines: None,
        grace: float = 5.0,
        program: str = "/bin/sh",
        first: Child | None = None,
        unwanted: Callable[[], str] = lambda: "",
        past: PreviousDeaths = _NO_DEATHS,
    ) -> None:
        self.reports: list[ChildReport] = []
        self.pids: list[int] = []
        self.up = asyncio.Event()
        self.supervisor = Supervisor(
            "sleeper",
            self._command,
            policy,
            bring_up or self._reports_up,
            SupervisorOptions(
                permanent_failure=permanent,
                why_no_restart=unwanted,
                on_change=self.reports.append,
                grace=grace,
                adopted=first,
                previous_deaths=past,
            ),
        )
        self._argv = (program, "-c", script)
        self.task = asyncio.create_task(self.supervisor.run(self.up.set))

    async def _command(self) -> Command:
        return Command(self._argv, "sleeper", {"PATH": os.defpath})

    async def _reports_up(self, child: Child) -> None:
        while "up" not in child.tail(5):
            await asyncio.sleep(0.005)
        self.pids.append(child.pid)

    @property
    def states(self) -> list[ChildState]:
        """The states in order, each once in a row."""
        actual: list[ChildState] = []
        for report in self.reports:
            if not actual or actual[-1] is not report.state:
                actual.append(report.state)
        return actual

    async def is_up(self, times: int = 1) -> None:
        async with asyncio.timeout(30):
            while self.states.count(ChildState.RUNNING) < times:
                assert not self.task.done(), self.task
                await asyncio.sleep(0.005)

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_up_then_stopped() -> None:
    watched = Watched(STAY)
    await watched.is_up()
    assert watched.up.is_set()
    assert watched.supervisor.report.pid == watched.pids[0]
    await watched.end()
    assert watched.states == [ChildState.STARTING, ChildState.RUNNING, ChildState.STOPPING, ChildState.STOPPED]
    assert watched.reports[-1].pid is None
    assert gone(watched.pids[0])


async def test_a_child_that_dies_is_restarted_until_the_budget_is_spent() -> None:
    watched = Watched(STAY)
    for times in (1, 2, 3):
        await watched.is_up(times)
        assert watched.supervisor.child is not None
        watched.supervisor.child.send_signal(9)
    async with asyncio.timeout(30):
        with pytest.raises(ChildFailed) as failed:
            await watched.task
    story = str(failed.value)
    assert "sleeper ended with signal 9 (KILL) after" in story
    assert "its last line: up" in story
    assert "restart budget spent (2 in 300 s)" in story
    assert len(set(watched.pids)) == 3
    once = [ChildState.STARTING, ChildState.RUNNING, ChildState.EXITED]
    assert watched.states == [*once, ChildState.BACKOFF, *once, ChildState.BACKOFF, *once, ChildState.FATAL]
    assert [report.restarts for report in watched.reports][-1] == 2


async def test_a_child_that_did_its_job_is_restarted_without_a_wait_each_time() -> None:
    watched = Watched(STAY, RestartPolicy(budget=2, base=300.0, cap=300.0, settled=0.0))
    for times in (1, 2, 3):
        await watched.is_up(times)
        assert watched.supervisor.child is not None
        watched.supervisor.child.send_signal(9)
    async with asyncio.timeout(30):
        with pytest.raises(ChildFailed, match="restart budget spent"):
            await watched.task


async def test_a_child_that_never_did_its_job_waits() -> None:
    watched = Watched("exit 7", RestartPolicy(budget=5, base=150.0, cap=300.0, settled=0.001))
    async with asyncio.timeout(30):
        while not (watched.reports and watched.reports[-1].reason == "restarting in 300.00 s"):
            await asyncio.sleep(0.005)
    await watched.end()


async def test_without_a_budget_one_that_died_before_a_re_execution_stays_down() -> None:
    watched = Watched(STAY, RestartPolicy(budget=0), past=PreviousDeaths(0, "sleeper ended with signal 9", 1.0))
    async with asyncio.timeout(30):
        with pytest.raises(ChildFailed, match="sleeper ended with signal 9; it is not restarted"):
            await watched.task
    assert watched.states == [ChildState.FATAL]


async def test_a_child_that_dies_before_it_is_up_counts_too() -> None:
    watched = Watched("exit 7")
    with pytest.raises(ChildFailed, match="exit code 7"):
        await watched.task
    assert ChildState.RUNNING not in watched.states
    assert not watched.up.is_set()


async def test_what_no_restart_can_help_is_given_up_at_once() -> None:
    watched = Watched("echo broken; exit 1", permanent=lambda status, lines: f"{status.code} {lines[-1]}")
    with pytest.raises(ChildFailed, match="1 broken"):
        await watched.task
    assert watched.states == [ChildState.STARTING, ChildState.EXITED, ChildState.FATAL]


async def test_a_failure_while_it_is_brought_up_ends_it_and_is_raised() -> None:
    pids: list[int] = []

    async def refuse(child: Child) -> None:
        pids.append(child.pid)
        raise AdminExposed("exposed")

    watched = Watched(STAY, bring_up=refuse)
    with pytest.raises(AdminExposed):
        await watched.task
    assert gone(pids[0])


async def test_a_child_that_ignores_term_is_killed_after_the_grace() -> None:
    watched = Watched("trap '' TERM; echo up; while :; do sleep 1; done", grace=0.05)
    await watched.is_up()
    await watched.end()
    assert gone(watched.pids[0])
    assert watched.states[-1] is ChildState.STOPPED


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
async def test_being_cancelled_at_any_moment_leaves_no_child(turns: int) -> None:
    watched = Watched(STAY)
    for _ in range(turns):
        await asyncio.sleep(0)
    await watched.end()
    child = watched.supervisor.child
    assert child is None or gone(child.pid)


async def test_being_cancelled_while_it_waits_to_restart_is_quick() -> None:
    watched = Watched("exit 1", RestartPolicy(budget=9, base=3600.0, cap=3600.0))
    async with asyncio.timeout(30):
        while ChildState.BACKOFF not in watched.states or watched.supervisor.report.restarts < 2:
            await asyncio.sleep(0.005)
        await watched.end()
    assert watched.states[-2:] == [ChildState.BACKOFF, ChildState.STOPPED]


async def test_a_child_that_becomes_unwanted_before_its_restart_is_not_restarted() -> None:
    """A stop may come during the pause."""
    watched = Watched(STAY, unwanted=lambda: "stopping" if ChildState.BACKOFF in watched.states else "")
    await watched.is_up()
    os.kill(watched.pids[0], signal.SIGKILL)
    with pytest.raises(ChildFailed, match=r"signal 9 .*; stopping"):
        await watched.task
    assert len(watched.pids) == 1
    assert watched.states[-1] is ChildState.FATAL


async def test_a_child_that_cannot_be_started_is_fatal(tmp_path: Path) -> None:
    watched = Watched(STAY, program=str(tmp_path / "none"))
    with pytest.raises(SpawnError, match="none"):
        await watched.task
    assert watched.states[-1] is ChildState.FATAL
    assert "none" in watched.reports[-1].reason


async def test_a_child_that_ran_and_cannot_be_started_for_a_moment_is_retried(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.symlink_to("/bin/sh")
    watched = Watched(STAY, RestartPolicy(budget=9, base=0.01, cap=0.01), program=str(program))
    await watched.is_up()
    # As while a package is upgraded, or where there are no descriptors left.
    program.unlink()
    os.kill(watched.pids[0], signal.SIGKILL)
    async with asyncio.timeout(30):
        while "cannot be run" not in watched.supervisor.report.last_exit:
            await asyncio.sleep(0.005)
    program.symlink_to("/bin/sh")
    await watched.is_up(2)
    assert ChildState.FATAL not in watched.states
    await watched.end()


async def test_a_child_that_ran_and_cannot_be_started_any_more_is_given_up(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.symlink_to("/bin/sh")
    watched = Watched(STAY, program=str(program))
    await watched.is_up()
    program.unlink()
    os.kill(watched.pids[0], signal.SIGKILL)
    with pytest.raises(ChildFailed, match=r"program cannot be run .*; restart budget spent"):
        await watched.task
    assert watched.states[-1] is ChildState.FATAL


async def other(script: str = STAY) -> Child:
    child = await Child.spawn(Command(("/bin/sh", "-c", script), "other", {"PATH": os.defpath}))
    while "up" not in child.tail(5):
        await asyncio.sleep(0.005)
    return child


async def test_after_a_replacement_the_other_child_is_watched() -> None:
    watched = Watched(STAY)
    await watched.is_up()
    second, third = await other(), await other()
    first = watched.supervisor.replace_child(second)
    assert first is not None
    await first.stop(5.0)
    assert watched.supervisor.replace_child(third) is second
    await second.stop(5.0)
    assert watched.states == [ChildState.STARTING, ChildState.RUNNING]
    assert watched.supervisor.report.pid == third.pid
    third.send_signal(9)
    await watched.is_up(2)
    assert watched.supervisor.report.restarts == 1
    await watched.end()
    assert all(gone(pid) for pid in (*watched.pids, second.pid, third.pid))


async def test_a_child_that_has_ended_is_not_replaced() -> None:
    watched = Watched(STAY)
    await watched.is_up()
    second = await other()
    former = watched.supervisor.child
    assert former is not None
    former.send_signal(9)
    await former.wait()
    assert watched.supervisor.replace_child(second) is None
    await second.stop(5.0)
    await watched.is_up(2)
    await watched.end()


async def test_a_blind_child_runs_until_it_ends_or_is_replaced() -> None:
    watched = Watched(STAY)
    await watched.is_up()
    watched.supervisor.set_running_blind("no admin")
    assert (watched.reports[-1].state, watched.reports[-1].reason) == (ChildState.RUNNING_BLIND, "no admin")
    second = await other()
    former = watched.supervisor.replace_child(second)
    assert former is not None
    await former.stop(5.0)
    assert watched.states[-1] is ChildState.RUNNING
    await watched.end()


async def test_a_restart_that_is_requested_spends_no_budget() -> None:
    watched = Watched(STAY, RestartPolicy(budget=0))
    await watched.is_up()
    await watched.supervisor.restart("another program")
    await watched.is_up(2)
    assert watched.supervisor.report.restarts == 0
    assert "another program" in [report.reason for report in watched.reports]
    await watched.end()


async def test_a_child_that_runs_already_is_watched_and_brought_up() -> None:
    first = await other()
    watched = Watched(STAY, first=first)
    await watched.is_up()
    assert watched.pids == [first.pid]
    first.send_signal(9)
    await watched.is_up(2)
    await watched.end()


async def test_a_result_of_its_last_moment_counts_more_than_how_it_ended() -> None:
    async def end_and_refuse(child: Child) -> None:
        child.send_signal(9)
        await child.wait()
        raise AdminExposed("exposed")

    watched = Watched(STAY, bring_up=end_and_refuse)
    with pytest.raises(AdminExposed):
        await watched.task


async def test_a_lack_of_descriptors_spends_no_restart() -> None:
    sleeper = Watched(STAY, RestartPolicy(budget=1, base=0.001))
    await sleeper.up.wait()
    with no_descriptors_left():
        os.kill(sleeper.pids[-1] if sleeper.pids else sleeper.reports[-1].pid or 0, signal.SIGKILL)

        async def lacks() -> bool:
            return "Too many open files" in sleeper.supervisor.report.reason

        await poll_async(lacks, what="a start that fails")

    async def again() -> bool:
        return sleeper.supervisor.report.state is ChildState.RUNNING

    await poll_async(again, what="the child again")
    report = sleeper.supervisor.report
    assert (report.restarts, dict(report.causes)) == (1, {"signal": 1})
    sleeper.task.cancel()
    await asyncio.wait({sleeper.task})
