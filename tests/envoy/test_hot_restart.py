"""Real Envoys changing places: the good way, and everything that can go wrong on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from kumadp.envoy import component, retirement
from kumadp.envoy.adopted_envoy import AdoptedEnvoy
from kumadp.envoy.base_id import SharedMemory
from kumadp.envoy.epochs import ReloadKind
from kumadp.envoy.hang_watch import HangWatch
from kumadp.errors import ChildFailed
from kumadp.host.private_file import write_private
from kumadp.process import progress
from kumadp.process.child import Child, RunningProcess
from kumadp.process.exit_status import ExitStatus
from kumadp.process.progress import main_thread_ticks
from kumadp.process.restart_policy import ChildState
from tests.support.epochs import Epochs, running
from tests.support.load import load
from tests.support.needs import need_envoy
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.process


async def ready(envoys: Epochs) -> bool:
    return await envoys.component.admin.ready() == (True, "LIVE")


def files_in(folder: Path) -> list[Path]:
    return list(folder.glob("h[0-9]*"))


@contextlib.asynccontextmanager
async def never_not_running(envoys: Epochs) -> AsyncIterator[None]:
    """Nothing but RUNNING is reported while the block runs."""
    count = len(envoys.states)
    yield
    assert set(envoys.states[count:]) <= {ChildState.RUNNING}


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_a_reload_under_load_fails_no_request(tmp_path: Path, unix: bool) -> None:
    async with running(tmp_path, unix=unix, concurrency=2) as envoys, never_not_running(envoys):
        async with load(envoys.port, rate=1000, connections=4) as tally:
            await asyncio.sleep(0.5)
            outcome = await envoys.component.reload("test", envoys.plan("second"))
            assert (outcome.kind, outcome.epoch, outcome.missing, outcome.ok) == (ReloadKind.HOT, 1, (), True)
            assert await ready(envoys)
            await envoys.alone()
            await asyncio.sleep(0.5)
        assert tally.failures == {}
        assert tally.answers["first"] > 100
        assert tally.answers["second"] > 100
        assert await ready(envoys)
        assert envoys.deaths == []
        # Who follows the follower has the same admin, and the third takes the first one's number modulo three.
        for number, text in enumerate(("third", "fourth"), start=2):
            assert (await envoys.component.reload("again", envoys.plan(text))).epoch == number
            await envoys.alone()
            assert await envoys.answer() == text
        assert await ready(envoys)
    assert envoys.states[-2:] == [ChildState.STOPPING, ChildState.STOPPED]


async def test_a_reload_with_more_workers_fails_no_request_and_fewer_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path, concurrency=1) as envoys:
        async with load(envoys.port, rate=500) as tally:
            assert (await envoys.component.reload("more", envoys.plan("second", concurrency=2))).kind is ReloadKind.HOT
            await envoys.alone()
        assert tally.failures == {}
        outcome = await envoys.component.reload("fewer", envoys.plan("third", concurrency=1))
        assert (outcome.kind, outcome.epoch) == (ReloadKind.REFUSED, 1)
        assert "with 1 workers in place of 2 connections would be lost" in outcome.reason
        outcome = await envoys.component.reload("fewer", envoys.plan("third", concurrency=1), allow_cold=True)
        assert (outcome.kind, outcome.ok, outcome.epoch) == (ReloadKind.COLD, True, 0)
        assert await envoys.answer() == "third"
        # It was requested: nothing of the budget is spent.
        assert envoys.reports[-1].restarts == 0


async def test_workers_that_envoy_counts_itself_stay_as_many(tmp_path: Path) -> None:
    async with running(tmp_path, concurrency=0) as envoys:
        concurrency = await envoys.component.admin.stats(r"^server\.concurrency$")
        former = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(former)})
        try:
            assert (await envoys.component.reload("fewer processors")).kind is ReloadKind.HOT
        finally:
            os.sched_setaffinity(0, former)
        assert await envoys.component.admin.stats(r"^server\.concurrency$") == concurrency


async def test_the_callbacks_report_each_epoch(tmp_path: Path) -> None:
    async with running(tmp_path) as envoys:
        first = envoys.pids[0]
        await envoys.component.reload("test")
        second = envoys.pids[0]
        # Its end is reported in the turn of the loop after it is seen.
        await poll_async(
            lambda: asyncio.sleep(0, any(what[0] == "ended" for what in envoys.events)), what="a reported end"
        )
        assert [what for what in envoys.events if what[0] != "handover"] == [
            ("started", 0, first),
            ("live", 0),
            ("started", 1, second),
            ("live", 1),
            ("ended", 0, first, True),
        ]
        assert [what[1] for what in envoys.events if what[0] == "handover"] == [True, False]
        assert (envoys.generation_of(first), envoys.generation_of(second)) == (None, 1)
        envoys.signal()
        await envoys.is_up(2)
        # The epoch is 0 again; the generation is not.
        assert envoys.generation_of(envoys.pids[0]) == 2
        assert ("ended", 1, second, False) in envoys.events


async def test_a_configuration_that_envoy_refuses_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as envoys, never_not_running(envoys):
        pids = envoys.pids
        outcome = await envoys.component.reload("bad", envoys.plan("bad", bad=True), allow_cold=True)
        assert outcome.kind is ReloadKind.REFUSED
        assert "Envoy refuses the configuration: cannot create an EDS cluster" in outcome.reason
        assert envoys.pids == pids
        assert await ready(envoys)
        assert (await envoys.component.reload("good", envoys.plan("second"))).kind is ReloadKind.HOT


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_a_stuck_epoch_is_killed_and_the_old_one_keeps_serving_and_gets_its_admin_back(
    tmp_path: Path, unix: bool
) -> None:
    async with running(tmp_path, unix=unix, deadline=3.0) as envoys:
        async with load(envoys.port, rate=300, connections=2) as tally:
            outcome = await envoys.component.reload("stuck", envoys.plan("stuck", stuck=True))
            assert (outcome.kind, outcome.epoch) == (ReloadKind.FAILED, 0)
            assert "it is not LIVE: no progress for 3 s: CPU 0." in outcome.reason
            assert "; the new Envoy is PRE_INITIALIZING" in outcome.reason
            assert ChildState.RUNNING_BLIND in envoys.states

            async def repaired() -> bool:
                return envoys.states[-1] is ChildState.RUNNING

            await poll_async(repaired, what="the admin")
            assert await ready(envoys)
            await envoys.alone()
        assert tally.failures == {}
        assert set(tally.answers) == {"first"}
        assert ChildState.EXITED not in envoys.states
        (death,) = envoys.deaths
        assert death.why.startswith("as a new epoch it failed: it is not LIVE: no progress for 3 s")
        assert (await envoys.component.reload("good", envoys.plan("second"))).ok
        assert await envoys.answer() == "second"


# Clusters that take the processor for seconds: far longer than the deadline of these tests.
SLOW = 200


async def test_an_epoch_that_works_longer_than_the_deadline_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However busy the host is.
    monkeypatch.setattr(progress, "LONGEST_TIMES", 1000)
    async with running(tmp_path, deadline=1.0) as envoys, never_not_running(envoys):
        async with load(envoys.port, rate=100) as tally:
            outcome = await envoys.component.reload("slow", envoys.plan("second", slow=SLOW))
            assert (outcome.kind, outcome.reason) == (ReloadKind.HOT, "")
            ticks = main_thread_ticks(envoys.pids[0])
            await envoys.alone()
        assert ticks is not None
        assert ticks / os.sysconf("SC_CLK_TCK") > 1.0
        assert tally.failures == {}
        assert await envoys.answer() == "second"


async def test_an_epoch_that_stops_working_is_killed_and_the_old_one_keeps_serving(tmp_path: Path) -> None:
    async with running(tmp_path, deadline=1.0) as envoys:
        reload = asyncio.create_task(envoys.component.reload("slow", envoys.plan("second", slow=SLOW)))

        async def works() -> bool:
            assert not reload.done()
            return len(envoys.pids) == 2 and (main_thread_ticks(envoys.pids[1]) or 0) > 0

        await poll_async(works, what="a new epoch that works")
        envoys.signal(signal.SIGSTOP, which=1)
        outcome = await reload
        assert (outcome.kind, outcome.epoch) == (ReloadKind.FAILED, 0)
        assert outcome.reason.startswith("it is not LIVE: no progress for 1 s: CPU 0.0 s")
        assert await envoys.answer() == "first"


async def test_a_new_epoch_that_orders_the_old_one_to_end_too_late_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retirement, "OVERSTAYED", 0.5)
    # Long enough that the order has not been sent when the new one is stopped, also on a busy host.
    async with running(tmp_path, drain_time=8.0) as envoys:
        old = envoys.pids[0]
        assert (await envoys.component.reload("test", envoys.plan("second"))).kind is ReloadKind.HOT
        new = envoys.signal(signal.SIGSTOP)

        async def ended() -> bool:
            return "the old Envoy ended because it did not end by itself; using the fallback" in caplog.text

        await poll_async(ended, what="the end of the old epoch", deadline=60)
        assert old not in envoys.pids
        envoys.signal(signal.SIGCONT)

        async def ordered() -> bool:
            return not envoys.component.is_busy

        await poll_async(ordered, what="the order to end", deadline=60)
        assert envoys.pids == [new]
        assert await envoys.answer() == "second"


async def test_the_next_reload_gets_an_admin_back_that_stayed_lost(tmp_path: Path) -> None:
    async with running(tmp_path, deadline=2.0) as envoys:
        # What the current one runs cannot be started any more, so that it cannot be repaired by itself.
        write_private(tmp_path / "bootstrap-1.yaml", json.dumps(envoys.bootstrap("first", stuck=True)).encode())
        assert (await envoys.component.reload("stuck", envoys.plan("stuck", stuck=True))).kind is ReloadKind.FAILED

        async def settled() -> bool:
            return not envoys.component.is_handing_over

        await poll_async(settled, what="the end of the repair")
        assert envoys.states[-1] is ChildState.RUNNING_BLIND
        assert (await envoys.component.reload("good", envoys.plan("second"))).kind is ReloadKind.HOT
        assert envoys.reports[-1].state is ChildState.RUNNING
        assert await ready(envoys)


# As with an Envoy whose shared memory has another layout: nothing can be unlocked.
OTHER_LAYOUT = SharedMemory(layout="99.104")


async def make_blind(envoys: Epochs) -> None:
    """Have a reload fail that locks hot restart (with `OTHER_LAYOUT`)."""
    assert (await envoys.component.reload("stuck", envoys.plan("stuck", stuck=True))).kind is ReloadKind.FAILED
    assert envoys.states[-1] is ChildState.RUNNING_BLIND


async def test_a_locked_hot_restart_leaves_it_blind_until_a_cold_restart(tmp_path: Path) -> None:
    watch = HangWatch(interval=0.1, limit=1.5)
    async with running(tmp_path, deadline=1.0, watch=watch, memory=OTHER_LAYOUT) as envoys:
        await make_blind(envoys)
        pid = envoys.pids[0]
        assert "it serves without its admin: it is not LIVE: no progress for 1 s" in envoys.reports[-1].reason
        assert await envoys.answer() == "first"
        outcome = await envoys.component.reload("hot", envoys.plan("second"))
        assert outcome.kind is ReloadKind.REFUSED
        assert "only a cold restart can do it: an epoch that ended too early has locked hot restart" in outcome.reason
        # Without an admin that could answer it is not taken for one that hangs.
        await asyncio.sleep(2.0)
        assert envoys.pids == [pid]
        outcome = await envoys.component.reload("cold", envoys.plan("second"), allow_cold=True)
        assert (outcome.kind, outcome.epoch) == (ReloadKind.COLD, 0)
        assert await envoys.answer() == "second"
        assert await ready(envoys)
        assert (await envoys.component.reload("hot again")).kind is ReloadKind.HOT


async def test_a_blind_envoy_that_dies_is_restarted(tmp_path: Path) -> None:
    async with running(tmp_path, deadline=1.0, memory=OTHER_LAYOUT) as envoys:
        await make_blind(envoys)
        envoys.signal()
        await envoys.is_up(2)
        assert await envoys.answer() == "first"
        assert await ready(envoys)


async def test_a_new_epoch_that_is_killed_while_it_comes_up_fails_no_request(tmp_path: Path) -> None:
    async with running(tmp_path) as envoys:
        reload = asyncio.create_task(envoys.component.reload("killed", envoys.plan("stuck", stuck=True)))
        await both(envoys)
        envoys.signal(which=1)
        outcome = await reload
        assert (outcome.kind, outcome.epoch) == (ReloadKind.FAILED, 0)
        assert "it ended with signal 9 (KILL)" in outcome.reason
        assert await envoys.answer() == "first"

        async def repaired() -> bool:
            return envoys.states[-1] is ChildState.RUNNING and await ready(envoys)

        await poll_async(repaired, what="the admin")
        assert ChildState.EXITED not in envoys.states


async def both(envoys: Epochs) -> None:
    async def seen() -> bool:
        return len(envoys.pids) == 2

    await poll_async(seen, what="two Envoys")


async def test_the_old_epoch_killed_during_a_hand_over_is_a_crash(tmp_path: Path) -> None:
    async with running(tmp_path) as envoys:
        reload = asyncio.create_task(envoys.component.reload("killed", envoys.plan("stuck", stuck=True)))
        await both(envoys)
        envoys.signal()
        outcome = await reload
        assert outcome.kind is ReloadKind.FAILED
        await envoys.is_up(2)
        assert await envoys.answer() == "first"
        assert envoys.reports[-1].restarts == 1
        assert (await envoys.component.reload("good", envoys.plan("second"))).kind is ReloadKind.HOT


async def test_the_new_epoch_killed_while_the_old_one_drains_is_a_crash_and_the_old_one_finishes(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, drain_time=3.0) as envoys:
        await envoys.component.reload("good", envoys.plan("second"))
        old = envoys.pids[1]
        envoys.signal()
        await envoys.is_up(2)
        assert await envoys.answer() == "second"
        assert old in envoys.pids
        await envoys.alone()
        assert await ready(envoys)


async def test_the_old_epoch_gets_its_time_if_the_new_one_dies_during_a_drain(tmp_path: Path) -> None:
    async with running(tmp_path, drain_time=2.0) as envoys:
        await envoys.component.reload("good", envoys.plan("second"))
        old = envoys.pids[1]
        envoys.leaving = True
        envoys.signal()
        with pytest.raises(ChildFailed, match="it is not restarted, as kumadp is stopping"):
            await envoys.task
        # It ended as planned, and was not stopped.
        assert ("ended", 0, old, True) in envoys.events


async def test_the_new_epoch_survives_the_death_of_the_old_one_that_drains(tmp_path: Path) -> None:
    # Without somebody in its place the new Envoy's main thread stands still from here on, and it aborts 10 s later.
    async with running(tmp_path, drain_time=2.0) as envoys, never_not_running(envoys):
        await envoys.component.reload("good", envoys.plan("second"))
        new = envoys.pids[0]
        envoys.signal(which=1)

        async def dead() -> bool:
            return envoys.pids == [new]

        await poll_async(dead, what="the end of the old one")
        # The next program after execve(2) would not run the fallback. One that is killed leaves it all the same.
        assert envoys.component.export() is None
        assert envoys.component.export(starting=True) is not None

        async def over() -> bool:
            return not envoys.component.is_busy

        await poll_async(over, what="the end of the drain")
        assert envoys.pids == [new]
        assert envoys.component.export() is not None
        assert await ready(envoys)
        assert (await envoys.component.reload("next", envoys.plan("third"))).kind is ReloadKind.HOT
        await envoys.alone()
        assert await envoys.answer() == "third"


async def test_reloads_queue_and_of_those_that_wait_the_newest_wins(tmp_path: Path) -> None:
    async with running(tmp_path) as envoys:
        names = ("second", "third", "fourth")
        outcomes = await asyncio.gather(*(envoys.component.reload(name, envoys.plan(name)) for name in names))
        assert [outcome.kind for outcome in outcomes] == [ReloadKind.HOT, ReloadKind.REFUSED, ReloadKind.HOT]
        assert outcomes[1].reason == "a later reload took its place"
        assert await envoys.answer() == "fourth"
        assert len(envoys.pids) <= 2


async def test_listeners_that_the_new_epoch_lacks_are_reported_with_envoy(tmp_path: Path) -> None:
    async with running(tmp_path, start={"more": True}) as envoys:
        outcome = await envoys.component.reload("fewer", envoys.plan("second"))
        assert (outcome.kind, outcome.ok) == (ReloadKind.HOT, False)
        assert [str(envoys.other) in address for address in outcome.missing] == [True]


async def test_another_protocol_of_hot_restart_is_a_cold_restart_if_allowed(tmp_path: Path) -> None:
    other = tmp_path / "envoy"
    other.write_text(
        f'#!/bin/sh\nif [ "$1" = --hot-restart-version ]; then echo 12.104; exit; fi\nexec {need_envoy()} "$@"\n'
    )
    other.chmod(0o755)
    async with running(tmp_path) as envoys:
        plan = envoys.plan("second", binary=other)
        outcome = await envoys.component.reload("upgrade", plan)
        assert outcome.kind is ReloadKind.REFUSED
        assert "hot restart speaks 12.104 there and 11.104 here" in outcome.reason
        assert await envoys.answer() == "first"
        assert (await envoys.component.reload("upgrade", plan, allow_cold=True)).kind is ReloadKind.COLD
        assert await envoys.answer() == "second"


async def test_without_hot_restart_a_reload_is_cold_and_the_command_line_is_kuma_dps(tmp_path: Path) -> None:
    async with running(tmp_path, hot=False) as envoys:
        outcome = await envoys.component.reload("no", envoys.plan("second"))
        assert outcome.reason == "only a cold restart can do it: hot restart is off"
        assert (await envoys.component.reload("yes", envoys.plan("second"), allow_cold=True)).kind is ReloadKind.COLD
        assert await envoys.answer() == "second"
        assert files_in(tmp_path) == []


async def test_a_cold_reload_that_makes_no_progress_is_reported_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(component, "COLD_IDLE", 1.0)
    async with running(tmp_path, hot=False) as envoys:
        outcome = await envoys.component.reload("stuck", envoys.plan("stuck", stuck=True), allow_cold=True)
        assert outcome.kind is ReloadKind.FAILED
        assert outcome.reason.startswith("it does not serve: no progress for 1 s: CPU 0.")
        assert outcome.reason.endswith("; still waiting for it")


async def test_shared_memory_and_folder_are_empty_at_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as envoys:
        first = envoys.shared_memory()
        assert len(first) == 1
        envoys.signal()
        await envoys.is_up(2)
        second = envoys.shared_memory()
        assert len(second) == 1
        assert not first[0].exists()
        await envoys.component.reload("good")
    assert not second[0].exists()
    assert files_in(tmp_path) == []


async def test_a_stop_removes_what_an_old_epoch_that_drains_has(tmp_path: Path) -> None:
    async with running(tmp_path, drain_time=30.0) as envoys:
        shared = envoys.shared_memory()
        await envoys.component.reload("good")
        envoys.signal()
        await envoys.is_up(2)
        assert len(envoys.pids) == 2
        assert shared[0].exists()
    assert not shared[0].exists()
    assert files_in(tmp_path) == []


async def test_a_sweep_removes_the_files_of_a_killed_kumadp_and_spares_running_epochs(tmp_path: Path) -> None:
    async with running(tmp_path) as living:
        files = {path: path.read_bytes() for path in files_in(tmp_path) if path.suffix == ".base"}
        memory = living.shared_memory()
        async with running(tmp_path) as envoys:
            assert memory[0].exists()
            assert len(envoys.shared_memory()) == 2
    assert files
    for path, content in files.items():
        path.write_bytes(content)
    memory[0].write_bytes(b"\0" * 104)
    async with running(tmp_path):
        assert not memory[0].exists()


async def test_the_sockets_of_hot_restart_are_the_owners_alone(tmp_path: Path) -> None:
    async with running(tmp_path):
        sockets = [path for path in files_in(tmp_path) if path.is_socket()]
        assert sockets
        assert {path.stat().st_mode & 0o777 for path in sockets} == {0o600}


async def test_an_envoy_that_hangs_is_killed_and_restarted(tmp_path: Path) -> None:
    async with running(tmp_path, watch=HangWatch(interval=0.1, limit=1.5)) as envoys:
        pid = envoys.pids[0]
        # An idle one that answers a request is not killed.
        await asyncio.sleep(2.0)
        assert envoys.pids == [pid]
        envoys.signal(signal.SIGSTOP)
        await envoys.is_up(2)
        assert await envoys.answer() == "first"
        reason = "signal 9 (KILL) from kumadp (it hung: no answer from its admin and no CPU used for 1.5 s)"
        assert reason in envoys.reports[-1].last_exit
        assert [status.describe() for status in envoys.deaths] == [reason]


async def test_an_envoy_that_hangs_while_it_starts_is_killed_and_restarted(tmp_path: Path) -> None:
    envoys = Epochs(tmp_path, watch=HangWatch(interval=0.1, limit=1.5))
    envoys.start(envoys.plan("first"))
    try:
        await poll_async(lambda: asyncio.sleep(0, bool(envoys.pids)), what="a process")
        stopped = envoys.signal(signal.SIGSTOP)
        assert envoys.states[-1] is ChildState.STARTING
        await envoys.is_up()
        assert envoys.pids != [stopped]
        assert "it hung: no answer from its admin" in envoys.reports[-1].last_exit
    finally:
        envoys.task.cancel()
        await asyncio.gather(envoys.task, return_exceptions=True)


async def test_an_envoy_that_runs_already_is_adopted(tmp_path: Path) -> None:
    async with running(tmp_path) as former:
        await former.component.reload("first", former.plan("second"))
        state = former.component.export()
        assert state is not None
        assert (state.epoch, state.blind) == (1, False)
        current, retiring = former.component.children
        # As after execve(2): the same processes, another component.
        former.task.cancel = lambda *_: False  # type: ignore[method-assign]
        copies = [
            Child.adopt(RunningProcess("envoy", child.pid, child.start_time, ours=False))
            for child in (current, retiring)
        ]
        later = Epochs(tmp_path, adopt=AdoptedEnvoy(state, copies[0], copies[1]))
        for copy in copies:
            copy.watch_death(later.note)
        later.port, later.admin = former.port, former.admin
        later.start(later.plan("third"))
        await later.is_up()
        assert [later.generation_of(child.pid) for child in (current, retiring)] == [1, 0]
        assert (await later.component.reload("after", later.plan("fourth"))).epoch == 2
        assert await later.answer() == "fourth"
        # The one that drained has ended as planned, although nobody can know how.
        assert await copies[1].wait() == ExitStatus(None, None)
        assert later.deaths == []
        later.task.cancel()
        await asyncio.gather(later.task, return_exceptions=True)
        del former.task.cancel


async def test_a_stop_ends_every_epoch(tmp_path: Path) -> None:
    async with running(tmp_path, drain_time=30.0) as envoys:
        await envoys.component.reload("good")
        pids = envoys.pids
        assert len(pids) == 2
        envoys.leaving = True
        assert (await envoys.component.reload("late")).reason == "everything stops"
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_drain_waits_for_a_hand_over_and_begins_none(tmp_path: Path) -> None:
    async with running(tmp_path) as envoys:
        reload = asyncio.create_task(envoys.component.reload("good", envoys.plan("second")))
        await both(envoys)
        await envoys.component.fail_health_checks()
        assert (await reload).kind is ReloadKind.HOT
        assert await envoys.component.admin.get("/ready") == (503, b"DRAINING\n")
        assert (await envoys.component.reload("late")).kind is ReloadKind.REFUSED
