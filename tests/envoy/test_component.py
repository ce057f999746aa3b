"""A real Envoy under the component: up with its listeners, back after a death, and why not when not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.bootstrap.admin_address import TcpAdmin, UnixAdmin
from kumadp.envoy.admin import AdminClient, AdminUnreachable
from kumadp.envoy.component import EnvoyComponent
from kumadp.envoy.options import EnvoyCallbacks, EnvoyOptions
from kumadp.envoy.reload import Plan
from kumadp.errors import ChildFailed
from kumadp.host.private_file import write_json
from kumadp.process.child import Command
from kumadp.process.restart_policy import ChildState, RestartPolicy
from tests.support.needs import need_envoy
from tests.support.poll import poll_async
from tests.support.scripted_control_plane import socket_address, static_bootstrap, static_listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from kumadp.bootstrap.admin_address import AdminAddress
    from tests.support.daemon import Ports

pytestmark = pytest.mark.process


class Running:
    """The component with a bootstrap of the test's, and what it reported."""

    def __init__(self, folder: Path, bootstrap: dict[str, Any], admin: AdminAddress, *, budget: int = 3) -> None:
        path = write_json(folder / "bootstrap.yaml", bootstrap)
        argv = (str(need_envoy()), "-c", str(path), "--disable-hot-restart", "--concurrency", "1", "-l", "info")

        async def command() -> Command:
            return Command(argv, "envoy", {})

        self.states: list[ChildState] = []
        self.reasons: list[str] = []
        plan = Plan(command, admin, dynamic="dynamicResources" in bootstrap)
        options = EnvoyOptions(RestartPolicy(budget, base=0.01), stop_grace=5.0)
        callbacks = EnvoyCallbacks(lambda report: self.states.append(report.state), self.reasons.append)
        self.component = EnvoyComponent(plan, options, callbacks)
        self.up = asyncio.Event()
        self.task = asyncio.create_task(self.component.run(self.up.set))

    async def is_up(self, times: int = 1) -> None:
        async def seen() -> bool:
            if self.task.done():
                self.task.result()
            return self.states.count(ChildState.RUNNING) >= times

        await poll_async(seen, what=f"Envoy up {times} times; reasons: {self.reasons}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.component.supervisor.child is not None
        self.component.supervisor.child.send_signal(number)


@contextlib.asynccontextmanager
async def envoy(
    folder: Path, bootstrap: dict[str, Any], admin: AdminAddress, *, budget: int = 3
) -> AsyncIterator[Running]:
    running = Running(folder, bootstrap, admin, budget=budget)
    try:
        yield running
    finally:
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)


def dynamic(folder: Path, ports: Ports, listeners: list[dict[str, Any]]) -> dict[str, Any]:
    """A bootstrap whose listeners come from a file."""
    kind = "type.googleapis.com/envoy.config.listener.v3.Listener"
    file = folder / "listeners.json"
    file.write_text(json.dumps({"resources": [{"@type": kind, **listener} for listener in listeners]}))
    tree = static_bootstrap(ports, 1)
    tree["staticResources"]["listeners"] = []
    source = {
        "resourceApiVersion": "V3",
        "pathConfigSource": {"path": str(file), "watchedDirectory": {"path": str(folder)}},
    }
    tree["dynamicResources"] = {"ldsConfig": source}
    return tree


async def test_admin_over_tcp_and_over_a_unix_socket(tmp_path: Path, ports: Ports) -> None:
    pipe = tmp_path / "admin.sock"
    for admin, address in (
        (TcpAdmin("127.0.0.1", ports.admin), None),
        (UnixAdmin(str(pipe)), {"pipe": {"path": str(pipe), "mode": 0o600}}),
    ):
        async with envoy(tmp_path, static_bootstrap(ports, 1, address), admin) as running:
            await running.is_up()
            assert running.up.is_set()
            client = running.component.admin
            assert await client.ready() == (True, "LIVE")
            assert (await client.get("/no-such-page"))[0] == 404
            stats = await client.stats(r"^server\.live$")
            assert stats == {"server.live": 1}
            await running.component.fail_health_checks()
            assert await client.get("/ready") == (503, b"DRAINING\n")
            await running.component.drain_inbound()


async def test_a_killed_envoy_is_restarted_until_the_budget_is_spent(tmp_path: Path, ports: Ports) -> None:
    admin = TcpAdmin("127.0.0.1", ports.admin)
    async with envoy(tmp_path, static_bootstrap(ports, 1), admin, budget=1) as running:
        await running.is_up()
        running.kill()
        await running.is_up(2)
        running.kill(signal.SIGSEGV)
        with pytest.raises(ChildFailed, match=r"signal 11 \(SEGV\).*restart budget spent \(1 in"):
            await running.task
        assert not running.component.is_running
        await running.component.wait_ended()


async def test_it_is_not_up_while_the_control_plane_sends_no_listeners(tmp_path: Path, ports: Ports) -> None:
    bootstrap = static_bootstrap(ports, 1)
    # As Kuma has it: one stream for all, waited for without end.
    bootstrap["staticResources"]["listeners"] = []
    service = {"envoyGrpc": {"clusterName": "application"}}
    bootstrap["dynamicResources"] = {
        "adsConfig": {"apiType": "GRPC", "transportApiVersion": "V3", "grpcServices": [service]},
        "ldsConfig": {"ads": {}, "resourceApiVersion": "V3", "initialFetchTimeout": "0s"},
    }
    async with envoy(tmp_path, bootstrap, TcpAdmin("127.0.0.1", ports.admin)) as running:

        async def waits() -> bool:
            return any("INITIALIZING" in reason for reason in running.reasons)

        await poll_async(waits, what="a reason")
        assert not running.up.is_set()
        running.kill()

        async def again() -> bool:
            return running.states.count(ChildState.STARTING) > 2

        await poll_async(again, what="the second Envoy")
        assert not running.up.is_set()


async def test_listeners_that_envoy_refuses_are_named(tmp_path: Path, ports: Ports) -> None:
    admin = TcpAdmin("127.0.0.1", ports.admin)
    broken = {**static_listener("broken", ports.inbound, "application"), "address": socket_address(1, "192.0.2.1")}
    async with envoy(tmp_path, dynamic(tmp_path, ports, [broken]), admin) as running:

        async def named() -> bool:
            return any("broken" in reason and "192.0.2.1" in reason for reason in running.reasons)

        await poll_async(named, what=f"the refused listener: {running.reasons}")
        assert not running.up.is_set()


async def test_a_wrong_configuration_fails_without_a_restart(tmp_path: Path, ports: Ports) -> None:
    bootstrap = static_bootstrap(ports, 1)
    bootstrap["staticResources"]["clusters"][0]["type"] = "EDS"
    async with envoy(tmp_path, bootstrap, TcpAdmin("127.0.0.1", ports.admin)) as running:
        with pytest.raises(ChildFailed, match="configuration is wrong: cannot create an EDS cluster"):
            await running.task
        assert running.states.count(ChildState.EXITED) == 1


async def test_a_stopped_envoy_delays_no_request_past_its_deadline(tmp_path: Path, ports: Ports) -> None:
    async with envoy(tmp_path, static_bootstrap(ports, 1), TcpAdmin("127.0.0.1", ports.admin)) as running:
        await running.is_up()
        running.kill(signal.SIGSTOP)
        client = AdminClient(TcpAdmin("127.0.0.1", ports.admin))
        with pytest.raises(AdminUnreachable, match=r"no answer within 0\.2 s"):
            await client.get("/ready", timeout=0.2)
        await client.close()
        running.kill(signal.SIGCONT)
