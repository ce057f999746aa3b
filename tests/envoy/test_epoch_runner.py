"""Epochs with programs in Envoy's place: what is started, reported and exported, and when a reload is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from kumadp.bootstrap.admin_address import AdminAddress, TcpAdmin
from kumadp.envoy import takeover
from kumadp.envoy.adopted_envoy import AdoptedEnvoy, EnvoyState
from kumadp.envoy.base_id import BaseIdFiles, SharedMemory
from kumadp.envoy.epoch_runner import EpochRunner
from kumadp.envoy.epochs import ReloadKind
from kumadp.envoy.options import EnvoyOptions, EpochCallbacks, HotRestart
from kumadp.envoy.reload import Plan
from kumadp.process.child import Child, Command
from kumadp.process.exit_status import ExitStatus
from kumadp.process.restart_policy import ChildState, RestartPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from kumadp.envoy.admin import AdminClient
    from kumadp.process.supervisor import Supervisor

ADDRESS = TcpAdmin("127.0.0.1", 9901)
BASE_ID = 5
ENVOY = """#!/bin/sh
case "$*" in
*--hot-restart-version*) echo 11.104;;
*--mode*validate*) echo "configuration 'x' OK";;
*) exec sleep 1000;;
esac
"""


class FakeAdmin:
    """The admin of the epoch that has it; the test gives it to the new one by ``epoch``."""

    def __init__(self) -> None:
        self.address: AdminAddress = ADDRESS
        self.epoch = 0

    async def move_to(self, address: AdminAddress) -> None:
        self.address = address

    async def get(self, path: str, timeout: float = 5.0) -> tuple[int, bytes]:
        del timeout
        options = {"restart_epoch": self.epoch, "concurrency": 1}
        info = {"state": "LIVE", "hot_restart_version": "11.104", "command_line_options": options}
        return 200, json.dumps(info if path == "/server_info" else {"listener_statuses": []}).encode()

    async def stats(self, _pattern: str, _timeout: float = 5.0) -> dict[str, int]:
        return {"listener_manager.workers_started": 1}

    gauges = stats


class FakeChild:
    """A process that the supervisor has, which ends when ``status`` is set."""

    planned_from = 0.0

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    @property
    def ended(self) -> bool:
        return self.status.done()

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self.status)

    async def stop(self, _grace: float) -> ExitStatus:
        self.end()
        return self.status.result()

    def send_signal(self, _number: int) -> bool:
        self.end()
        return True

    def end(self) -> None:
        if not self.status.done():
            self.status.set_result(ExitStatus(0, None))


class FakeSupervisor:
    """Has the current child, and notes what it is ordered."""

    def __init__(self) -> None:
        self.child: Any = FakeChild(1000)
        self.report = SimpleNamespace(state=ChildState.RUNNING)
        self.orders: list[str] = []

    def replace_child(self, child: Child) -> Any:
        old, self.child = self.child, child
        return old

    def set_running_blind(self, reason: str) -> None:
        self.orders.append(f"blind: {reason}")

    def kill(self) -> None:
        self.orders.append("kill")

    async def restart(self, why: str) -> None:
        self.orders.append(f"restart: {why}")


class Scene:
    """A runner, what it reported, and everything it stands on."""

    def __init__(
        self, folder: Path, *, hot: bool = True, adopted: AdoptedEnvoy | None = None, memory: SharedMemory | None = None
    ) -> None:
        program = folder / "envoy"
        program.write_text(ENVOY)
        program.chmod(0o755)
        self.folder = folder
        self.argv = (str(program), "--config-path", "x", "--disable-hot-restart")
        self.events: list[tuple[object, ...]] = []
        self.admin, self.supervisor = FakeAdmin(), FakeSupervisor()
        callbacks = EpochCallbacks(
            on_started=lambda generation, pid: self.events.append(("started", generation, pid)),
            on_live=lambda generation: self.events.append(("live", generation)),
            on_ended=lambda generation, pid, expected: self.events.append(("ended", generation, pid, expected)),
            on_handover=lambda active: self.events.append(("handover", active)),
            on_hot_restart_off=lambda reason: self.events.append(("off", reason)),
        )
        memory = memory or SharedMemory(folder)
        hot_restart = HotRestart(folder, drain_time=0.0, deadline=0.3, margin=0.2, shared_memory=memory)
        options = EnvoyOptions(
            RestartPolicy(3),
            stop_grace=1.0,
            hot_restart=hot_restart if hot else None,
            adopted=adopted,
        )
        plan = Plan(self.command, ADDRESS, dynamic=False)
        self.runner = EpochRunner(plan, options, callbacks, cast("AdminClient", self.admin))
        self.runner.supervisor = cast("Supervisor", self.supervisor)

    async def command(self) -> Command:
        return Command(self.argv, "envoy", {"PATH": "/usr/bin:/bin"})

    async def start(self) -> None:
        """Epoch 0 is started and LIVE; Envoy has written its base id."""
        await self.runner.cold_command()
        (self.folder / "h0.base").write_text(str(BASE_ID))
        assert not self.runner.on_spawned(self.supervisor.child)
        self.runner.on_live()


@contextlib.asynccontextmanager
async def scene(folder: Path, **options: Any) -> AsyncIterator[Scene]:
    at = Scene(folder, **options)
    try:
        yield at
    finally:
        at.runner.kill()
        if isinstance(at.supervisor.child, Child):
            await at.supervisor.child.stop(1.0)
        await at.runner.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _private(monkeypatch: pytest.MonkeyPatch) -> None:
    async def private(*_: object) -> None:
        pass

    monkeypatch.setattr(takeover, "prove_private", private)


async def test_epoch_0_chooses_a_base_id_and_is_exported(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        command = await at.runner.cold_command()
        assert "--use-dynamic-base-id" in command.argv
        assert "--disable-hot-restart" not in command.argv
        await at.start()
        assert at.events == [("started", 0, 1000), ("live", 0)]
        state = at.runner.export(starting=False)
        assert state is not None
        assert (state.epoch, state.current, state.blind, state.admin) == (0, 1000, False, "127.0.0.1:9901")
        at.runner.on_ended("signal 9")
        assert at.events[-1] == ("ended", 0, 1000, False)
        assert at.runner.export(starting=True) is None


async def test_a_starting_envoy_is_exported_only_with_starting(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        await at.runner.cold_command()
        at.runner.on_spawned(at.supervisor.child)
        assert at.runner.export(starting=False) is None
        assert at.runner.export(starting=True) is not None


async def test_without_hot_restart_a_reload_is_refused(tmp_path: Path) -> None:
    async with scene(tmp_path, hot=False) as at:
        assert (await at.runner.cold_command()).argv == at.argv
        at.runner.on_spawned(at.supervisor.child)
        at.runner.on_live()
        outcome = await at.runner.reload("SIGHUP", None, allow_cold=False)
        assert (outcome.kind, outcome.reason) == (
            ReloadKind.REFUSED,
            "only a cold restart can do it: hot restart is off",
        )


async def test_a_host_without_shared_memory_has_no_hot_restart(tmp_path: Path) -> None:
    async with scene(tmp_path, memory=SharedMemory(tmp_path / "none")) as at:
        assert (await at.runner.cold_command()).argv == at.argv
        ((what, reason),) = at.events
        assert what == "off"
        assert "hot restart is off: Envoy's hot restart needs shared memory" in str(reason)


async def test_a_reload_starts_the_next_epoch_and_retires_the_old_one(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        await at.start()
        old = at.supervisor.child
        reload = asyncio.ensure_future(at.runner.reload("SIGHUP", None, allow_cold=False))
        await until(lambda: at.runner.is_handing_over)
        assert at.runner.export(starting=False) is None
        await until(lambda: bool(at.runner.others))
        now = at.runner.export(starting=True)
        assert now is not None
        assert (now.current, now.epoch, now.generation, now.coming) == (old.pid, 0, 0, at.runner.others[0].pid)
        at.admin.epoch = 1
        outcome = await asyncio.wait_for(reload, 10)
        assert (outcome.kind, outcome.epoch, outcome.missing) == (ReloadKind.HOT, 1, ())
        new = at.supervisor.child
        assert [child.pid for child in at.runner.others] == [old.pid]
        state = at.runner.export(starting=False)
        assert state is not None
        assert (state.epoch, state.current, state.retiring, state.generation) == (1, new.pid, old.pid, 1)
        await asyncio.sleep(0.2)
        old.end()
        await until(lambda: not at.runner.state.is_busy)
        assert at.events == [
            ("started", 0, old.pid),
            ("live", 0),
            ("handover", True),
            ("started", 1, new.pid),
            ("live", 1),
            ("handover", False),
            ("ended", 0, old.pid, True),
        ]


async def test_an_epoch_that_does_not_come_up_is_killed_and_locks_hot_restart(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        await at.start()
        outcome = await at.runner.reload("SIGHUP", None, allow_cold=False)
        assert (outcome.kind, outcome.reason, outcome.epoch) == (
            ReloadKind.FAILED,
            "it is not LIVE: no progress for 0.3 s: CPU 0.0 s",
            0,
        )
        assert at.supervisor.orders == [
            "blind: it serves without its admin: it is not LIVE: no progress for 0.3 s: CPU 0.0 s"
        ]
        assert at.runner.others == ()
        state = at.runner.export(starting=False)
        assert state is not None
        assert (state.blind, state.locked) == (True, "an epoch that ended too early has locked hot restart")
        outcome = await at.runner.reload("again", None, allow_cold=False)
        assert outcome.reason == "only a cold restart can do it: an epoch that ended too early has locked hot restart"


async def test_a_stop_refuses_every_further_reload(tmp_path: Path) -> None:
    async with scene(tmp_path) as at:
        await at.start()
        at.runner.refuse_reloads()
        outcome = await at.runner.reload("late", None, allow_cold=True)
        assert (outcome.kind, outcome.reason) == (ReloadKind.REFUSED, "everything stops")
        await at.runner.settled()


async def test_an_adopted_envoy_keeps_its_generations(tmp_path: Path) -> None:
    current, retiring = FakeChild(11), FakeChild(10)
    state = EnvoyState(serial=3, epoch=4, blind=False, current=11, retiring=10, generation=7, retires_at=1e12)
    adopted = AdoptedEnvoy(state, cast("Child", current), cast("Child", retiring))
    async with scene(tmp_path, adopted=adopted) as at:
        at.supervisor.child = current
        assert not at.runner.on_spawned(cast("Child", current))
        assert at.events == [("started", 6, 10), ("started", 7, 11)]
        at.runner.on_live()
        exported = at.runner.export(starting=False)
        assert exported is not None
        assert (exported.serial, exported.epoch, exported.retiring, exported.generation) == (3, 4, 10, 7)


async def test_an_adopted_envoy_without_an_admin_serves_at_once(tmp_path: Path) -> None:
    current = FakeChild(11)
    state = EnvoyState(serial=0, epoch=1, blind=True, current=11, locked="it is locked")
    async with scene(tmp_path, adopted=AdoptedEnvoy(state, cast("Child", current))) as at:
        at.supervisor.child = current
        assert at.runner.on_spawned(cast("Child", current))
        exported = at.runner.export(starting=False)
        assert exported is not None
        assert (exported.blind, exported.locked) == (True, "it is locked")


@pytest.mark.parametrize("locked", [False, True])
async def test_the_successor_of_an_adopted_envoy_is_started_again_if_it_was_given_up(
    tmp_path: Path, locked: bool
) -> None:
    files, memory = BaseIdFiles(tmp_path, 0, SharedMemory(tmp_path)), tmp_path / f"envoy_shared_memory_{BASE_ID * 10}"
    files.base_id_file.write_text(str(BASE_ID))
    # Its size, its version, and the flag of an epoch that ended before it was LIVE.
    size, version, initializing = 104, 12 if locked else 11, 1
    memory.write_bytes(struct.pack("=QQ80xQ", size, version, initializing))
    state = EnvoyState(0, 1, blind=True, current=11, coming=12, generation=7, protocol="11.104", workers=1)
    current = FakeChild(11)
    async with scene(tmp_path, adopted=AdoptedEnvoy(state, cast("Child", current))) as at:
        at.supervisor.child = current
        assert at.runner.on_spawned(cast("Child", current))
        if locked:
            assert not at.runner.is_handing_over
            assert at.runner.export(starting=False) is not None
            return
        await until(lambda: bool(at.runner.others))
        assert struct.unpack("=QQ80xQ", memory.read_bytes())[2] == 0
        at.admin.epoch = 2
        await until(lambda: not at.runner.is_handing_over)
        exported = at.runner.export(starting=False)
        assert exported is not None
        assert (exported.epoch, exported.blind, exported.generation, exported.retiring) == (2, False, 8, 11)


async def test_an_envoy_that_was_started_without_hot_restart_stays_so(tmp_path: Path) -> None:
    state = EnvoyState(serial=-1, epoch=0, blind=False, current=11)
    async with scene(tmp_path, adopted=AdoptedEnvoy(state, cast("Child", FakeChild(11)))) as at:
        assert at.runner.hot is None
