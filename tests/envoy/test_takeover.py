"""One hand-over: when the new epoch is LIVE, what it lacks, and whether the old one has lost its listeners."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.envoy import takeover as takeover_module
from kumadp.envoy.adopted_envoy import EnvoyState
from kumadp.envoy.takeover import Takeover, resumed
from kumadp.errors import AdminExposed
from kumadp.process.exit_status import ExitStatus

if TYPE_CHECKING:
    import pytest

    from kumadp.envoy.admin import AdminClient
    from kumadp.process.child import Child

# Of no process: those are smaller (proc_sys_kernel(5): pid_max).
NO_PID = 1 << 22
FIRST, SECOND = ({"socket_address": {"address": "127.0.0.1", "port_value": port}} for port in (80, 81))


class FakeAdmin:
    """The admin of whichever epoch has it."""

    def __init__(self, port: int = 9901) -> None:
        self.address = TcpAdmin("127.0.0.1", port)
        self.epoch, self.state = 0, "LIVE"
        self.listeners: list[Any] = [FIRST, SECOND]

    async def get(self, path: str, timeout: float = 5.0) -> tuple[int, bytes]:
        del timeout
        options = {"restart_epoch": self.epoch, "concurrency": 1}
        info = {"state": self.state, "hot_restart_version": "11.104", "command_line_options": options}
        statuses = [{"name": "x", "local_address": address} for address in self.listeners]
        return 200, json.dumps(info if path == "/server_info" else {"listener_statuses": statuses}).encode()

    async def stats(self, _pattern: str, _timeout: float = 5.0) -> dict[str, int]:
        return {"listener_manager.workers_started": 1}

    gauges = stats


class FakeChild:
    """A process that ends when ``status`` is set."""

    def __init__(self, pid: int = NO_PID) -> None:
        self.pid = pid
        self.ended = False
        self.killed_for = ""
        self.status: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self.status)

    def tail(self, _lines: int) -> list[str]:
        return ["out of memory"]

    def kill_with_reason(self, why: str) -> bool:
        self.killed_for = why
        return True


def between(admin: FakeAdmin, current: FakeChild | None = None) -> Takeover:
    return Takeover(cast("AdminClient", admin), cast("Child | None", current), listeners_within=0.1)


async def test_the_new_epoch_has_taken_over_once_it_is_live_and_has_the_admin() -> None:
    admin = FakeAdmin()
    waiting = asyncio.ensure_future(between(admin).until_live(cast("Child", FakeChild()), 1, 30.0))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    admin.epoch, admin.state = 1, "INITIALIZING"
    await asyncio.sleep(0.1)
    assert not waiting.done()
    admin.state = "LIVE"
    assert await asyncio.wait_for(waiting, 10) == ""


async def test_the_end_of_the_old_epoch_counts_from_when_the_new_one_was_live() -> None:
    admin = FakeAdmin()
    takeover = between(admin)
    waiting = asyncio.ensure_future(takeover.until_live(cast("Child", FakeChild()), 1, 30.0))
    await asyncio.sleep(0.1)
    live = time.monotonic()
    admin.epoch = 1
    assert await asyncio.wait_for(waiting, 10) == ""
    # It is seen late.
    due = takeover.old_due(5.0)
    assert due.earliest <= live + 5.0 < due.latest


async def test_the_deadline_names_what_it_waits_for() -> None:
    admin = FakeAdmin()
    reason = await between(admin).until_live(cast("Child", FakeChild()), 1, 0.1)
    assert reason == "it is not LIVE: no progress for 0.1 s: CPU 0.0 s"
    admin.epoch, admin.state = 1, "INITIALIZING"
    reason = await between(admin).until_live(cast("Child", FakeChild()), 1, 0.1)
    assert reason.startswith("it is not LIVE: no progress for 0.1 s: CPU 0.0 s")
    assert reason.endswith("; the new Envoy is INITIALIZING: it waits for listeners and routes")


async def test_the_end_of_the_new_epoch_is_described_with_its_last_line() -> None:
    child = FakeChild()
    child.status.set_result(ExitStatus(1, None))
    reason = await between(FakeAdmin()).until_live(cast("Child", child), 1, 30.0)
    assert reason == "it ended with exit code 1: out of memory"


async def test_listeners_that_the_new_epoch_lacks_are_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def private(*_: object) -> None:
        pass

    monkeypatch.setattr(takeover_module, "prove_private", private)
    admin, child = FakeAdmin(), FakeChild()
    takeover = between(admin)
    await takeover.record()
    assert await takeover.prove(cast("Child", child)) == ((), "")
    admin.listeners = [FIRST]
    missing = json.dumps(SECOND, sort_keys=True)
    assert await takeover.prove(cast("Child", child)) == ((missing,), "")
    assert f"the new Envoy does not listen where the old one did: {missing}" in caplog.text
    assert child.killed_for == ""


async def test_an_exposed_epoch_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def exposed(*_: object) -> None:
        raise AdminExposed("it answers on 192.0.2.1:80", "look")

    monkeypatch.setattr(takeover_module, "prove_private", exposed)
    child = FakeChild()
    missing, reason = await between(FakeAdmin()).prove(cast("Child", child))
    assert missing == ()
    assert "192.0.2.1:80" in reason
    assert child.killed_for == reason


# Listens on two ports, prints the second, which is the admin's, and closes the first when a line comes.
LISTENING = """
import socket
first, admin = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
print(admin.getsockname()[1], flush=True)
input()
first.close()
print("closed", flush=True)
input()
"""


async def test_the_old_epoch_has_lost_its_listeners_if_none_is_left_but_the_admin() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", LISTENING, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        takeover = between(FakeAdmin(int(await process.stdout.readline())), FakeChild(process.pid))
        await takeover.record()
        assert not await takeover.lost()
        process.stdin.write(b"\n")
        assert await process.stdout.readline() == b"closed\n"
        assert await takeover.lost()
    finally:
        process.stdin.close()
        await process.wait()


async def test_without_an_old_epoch_nothing_was_lost() -> None:
    takeover = between(FakeAdmin())
    await takeover.record()
    assert not await takeover.lost()


def interrupted(coming: int = 12) -> EnvoyState:
    with socket.create_server(("127.0.0.1", 0)) as admin:
        port = admin.getsockname()[1]
    return EnvoyState(0, 1, False, os.getpid(), coming=coming, generation=7, shutdown=60.0, admin=f"127.0.0.1:{port}")


def test_an_old_epoch_that_listens_is_kept_without_its_admin() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        state = resumed(interrupted(), {12, os.getpid()})
    assert (state.epoch, state.current, state.blind, state.coming) == (1, os.getpid(), True, 12)


def test_a_new_epoch_that_has_the_listeners_is_kept() -> None:
    state = resumed(replace(interrupted(), current=NO_PID), {12})
    assert (state.epoch, state.current, state.retiring, state.blind) == (2, 12, NO_PID, False)
    assert (state.generation, state.coming) == (8, None)
    assert 50 < state.retires_at - time.monotonic() <= 60


def test_an_old_epoch_is_kept_if_the_new_one_is_dead() -> None:
    state = resumed(replace(interrupted(), current=NO_PID), {NO_PID})
    assert (state.epoch, state.current, state.blind) == (1, NO_PID, True)
