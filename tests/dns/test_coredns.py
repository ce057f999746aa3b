"""The real CoreDNS with our Corefile, between a server in Envoy's place and one in the resolvers'."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dns.message
import dns.query
import dns.rcode
import pytest

from kumadp.dns.coredns.binary import coredns_version, find_coredns
from kumadp.dns.coredns.component import CoreDnsComponent, CoreDnsOptions
from kumadp.dns.coredns.corefile import HEALTH_NAME, CorefileFacts, ForwardMethod, built_in
from kumadp.process.child import Command
from kumadp.process.restart_policy import ChildState, RestartPolicy
from tests.support.nameservers import name_server
from tests.support.needs import need_coredns, need_other_coredns
from tests.support.poll import poll_async
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from kumadp.dns.coredns.component import Fallback

pytestmark = pytest.mark.process

MESH = {"backend.mesh": "240.0.0.1", "web.svc.zone.mesh.local": "240.0.0.2", "own.example.org": "240.0.0.3"}
WORLD = {"other.example.org": "192.0.2.80", "backend.mesh": "192.0.2.66"}


@dataclass
class Running:
    """A CoreDNS that answers, or has failed permanently."""

    component: CoreDnsComponent
    port: int
    states: list[ChildState]
    reasons: list[str]
    warnings: list[str]

    async def query(self, name: str, kind: str = "A", *, tcp: bool = False) -> tuple[str, list[str]]:
        message = dns.message.make_query(name, kind)
        send = dns.query.tcp if tcp else dns.query.udp
        answer = await asyncio.to_thread(send, message, "127.0.0.1", port=self.port, timeout=10)
        return dns.rcode.to_text(answer.rcode()), [str(item) for rrset in answer.answer for item in rrset]

    def checks(self) -> int:
        """Return how many health checks succeeded."""
        return len(self.warnings) - len(list(filter(None, self.warnings)))

    async def running(self, times: int) -> None:
        async def back() -> bool:
            return self.states.count(ChildState.RUNNING) == times

        await poll_async(back, what=f"CoreDNS up for the {times}. time", deadline=40)


@contextlib.asynccontextmanager
async def coredns(
    folder: Path,
    corefile: str,
    port: int,
    *,
    budget: int = 5,
    binary: Path | None = None,
    fallback: Fallback | None = None,
) -> AsyncIterator[Running]:
    binary = binary or need_coredns()
    path = folder / "Corefile"
    path.write_text(corefile)
    environment = {"PATH": os.environ.get("PATH", "")}

    async def command() -> Command:
        return Command((str(binary), "-conf", str(path), "-quiet"), "coredns", environment)

    states: list[ChildState] = []
    reasons: list[str] = []
    warnings: list[str] = []
    component = CoreDnsComponent(
        command,
        CoreDnsOptions(
            port=port,
            policy=RestartPolicy(budget),
            grace=5.0,
            fallback=fallback,
            health_name=lambda: HEALTH_NAME if HEALTH_NAME in corefile else "",
            check_every=0.5,
        ),
        on_report=lambda report: states.append(report.state),
        on_give_up=lambda reason, _uses_fallback: reasons.append(reason),
        on_warning=warnings.append,
    )
    up = asyncio.Event()
    task = asyncio.create_task(component.run(up.set))
    try:
        running = Running(component, port, states, reasons, warnings)

        async def settled() -> bool:
            return up.is_set() or bool(reasons)

        await poll_async(settled, what="CoreDNS up or failed permanently")
        yield running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass
class DnsPorts:
    dns: int
    envoy: int
    metrics: int
    resolver: int

    @classmethod
    def take(cls) -> DnsPorts:
        return cls(*free_ports(4))

    def corefile(self, method: ForwardMethod, *, resolvers: bool = True) -> str:
        """Our Corefile, with a resolver on a port of the test: resolv.conf has port 53 only."""
        facts = CorefileFacts(self.dns, self.envoy, self.metrics, logging=False, binary="", config_dir="")
        servers = (f"127.0.0.1:{self.resolver}",) if resolvers else ()
        return built_in(facts, method, servers, ("mesh", "mesh.local"), ("127.0.0.1", "::1"))


@pytest.fixture
def ports() -> DnsPorts:
    return DnsPorts.take()


@pytest.fixture(params=["failover", "next", "alternate"])
def build(request: pytest.FixtureRequest) -> tuple[Path, ForwardMethod]:
    """A binary, and the method of forwarding that it is tested with."""
    if request.param == "alternate":
        return need_other_coredns("ALTERNATE"), ForwardMethod.ALTERNATE
    return need_coredns(), ForwardMethod[request.param.upper()]


async def test_the_version_of_the_real_binary() -> None:
    binary = need_coredns()
    assert (await coredns_version(binary, {})).count(".") == 2
    assert find_coredns(str(binary)) == binary.absolute()
    assert find_coredns("no-such-coredns") is None


async def test_what_is_no_coredns_has_no_version(tmp_path: Path) -> None:
    script = tmp_path / "coredns"
    script.write_text("#!/bin/sh\necho hello to you\nexit 1\n")
    script.chmod(0o755)
    assert await coredns_version(script, {}) == ""


@pytest.mark.parametrize("tcp", [False, True])
async def test_names_of_the_mesh_come_from_envoy_and_never_leak(
    tmp_path: Path, ports: DnsPorts, build: tuple[Path, ForwardMethod], tcp: bool
) -> None:
    binary, method = build
    with name_server(ports.envoy, MESH, exact=True) as envoy, name_server(ports.resolver, WORLD, tcp=True) as world:
        async with coredns(tmp_path, ports.corefile(method), ports.dns, binary=binary) as running:
            # Envoy's filter supports UDP only: queries by TCP are forwarded by UDP.
            assert await running.query("backend.mesh", tcp=tcp) == ("NOERROR", ["240.0.0.1"])
            assert await running.query("web.svc.zone.mesh.local", tcp=tcp) == ("NOERROR", ["240.0.0.2"])
            # Names outside the suffixes that Envoy knows, as those of a VirtualOutbound.
            assert await running.query("own.example.org", tcp=tcp) == ("NOERROR", ["240.0.0.3"])
            assert await running.query("other.example.org", tcp=tcp) == ("NOERROR", ["192.0.2.80"])
            assert await running.query("nothing.example.org", tcp=tcp) == ("NXDOMAIN", [])
            # If Envoy answers NXDOMAIN, the resolvers would be queried next.
            assert await running.query("unknown.mesh", tcp=tcp) == ("NXDOMAIN", [])
            assert await running.query("backend.mesh", "AAAA", tcp=tcp) == ("NXDOMAIN", [])
            for name in ("BackEnd.Mesh", "BACKEND.MESH", "unknown.MESH.local"):
                await running.query(name, tcp=tcp)
        assert world.queries_below("mesh") == world.queries_below("mesh.local") == []
        assert "BackEnd.Mesh" in envoy.queries
        assert world.queries_below("example.org")


async def test_a_silent_envoy_costs_names_of_the_mesh_alone(
    tmp_path: Path, ports: DnsPorts, build: tuple[Path, ForwardMethod]
) -> None:
    binary, method = build
    with (
        name_server(ports.envoy, MESH, exact=True, silent=True) as envoy,
        name_server(ports.resolver, WORLD, tcp=True) as world,
    ):
        async with coredns(tmp_path, ports.corefile(method), ports.dns, binary=binary) as running:
            for tcp in (False, True):
                assert await running.query("other.example.org", tcp=tcp) == ("NOERROR", ["192.0.2.80"])
            assert (await running.query("backend.mesh"))[0] == "SERVFAIL"
            assert world.queries_below("mesh") == []
            assert envoy.queries
            envoy.silent = False
            assert await running.query("backend.mesh") == ("NOERROR", ["240.0.0.1"])


async def test_an_envoy_that_is_away_costs_names_of_the_mesh_alone(
    tmp_path: Path, ports: DnsPorts, build: tuple[Path, ForwardMethod]
) -> None:
    binary, method = build
    with name_server(ports.resolver, WORLD, tcp=True) as world:
        async with coredns(tmp_path, ports.corefile(method), ports.dns, binary=binary) as running:
            for tcp in (False, True):
                assert await running.query("other.example.org", tcp=tcp) == ("NOERROR", ["192.0.2.80"])
                assert await running.query("nothing.example.org", tcp=tcp) == ("NXDOMAIN", [])
            assert (await running.query("backend.mesh"))[0] == "SERVFAIL"
            assert world.queries_below("mesh") == []


async def test_it_starts_where_there_are_no_resolvers(tmp_path: Path, ports: DnsPorts) -> None:
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, ports.corefile(ForwardMethod.NEXT, resolvers=False), ports.dns) as running:
            assert await running.query("backend.mesh") == ("NOERROR", ["240.0.0.1"])


@pytest.mark.parametrize("built", ["in", "by the user"])
async def test_it_is_healthy_while_no_upstream_answers(tmp_path: Path, ports: DnsPorts, built: str) -> None:
    user = f".:{ports.dns} {{\n    forward . 127.0.0.1:{ports.envoy}\n}}\n"
    corefile = user if built == "by the user" else ports.corefile(ForwardMethod.NEXT, resolvers=False)
    with name_server(ports.envoy, MESH, silent=True) as envoy:
        async with coredns(tmp_path, corefile, ports.dns) as running:

            async def looked_at() -> bool:
                return running.checks() > 5

            await poll_async(looked_at, what="some checks of its health")
            assert running.states == [ChildState.STARTING, ChildState.STARTING, ChildState.RUNNING]
            assert not any(running.warnings)
        assert envoy.queries == []


async def test_it_is_not_up_before_it_answers_by_udp_and_by_tcp(tmp_path: Path, ports: DnsPorts) -> None:
    # With TCP taken by another program CoreDNS serves nothing and ends.
    with socket.create_server(("", ports.dns), family=socket.AF_INET6, dualstack_ipv6=True):
        async with coredns(tmp_path, ports.corefile(ForwardMethod.NEXT), ports.dns, budget=0) as running:
            assert ChildState.RUNNING not in running.states
            assert running.reasons


async def test_a_killed_coredns_comes_back(tmp_path: Path, ports: DnsPorts) -> None:
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, ports.corefile(ForwardMethod.NEXT), ports.dns) as running:
            child = running.component.supervisor.child
            assert child is not None
            child.send_signal(signal.SIGKILL)
            await running.running(2)
            assert await running.query("backend.mesh") == ("NOERROR", ["240.0.0.1"])
            assert ChildState.BACKOFF in running.states
            assert running.reasons == []


async def test_a_stopped_coredns_is_replaced(tmp_path: Path, ports: DnsPorts) -> None:
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, ports.corefile(ForwardMethod.NEXT), ports.dns) as running:
            child = running.component.supervisor.child
            assert child is not None
            child.send_signal(signal.SIGSTOP)
            await running.running(2)
            assert await running.query("backend.mesh") == ("NOERROR", ["240.0.0.1"])
            warning = next(filter(None, running.warnings))
            assert warning == f"CoreDNS (pid {child.pid}) runs but does not answer by UDP and TCP; killing it"
            assert running.warnings[-1] == ""


async def test_a_reload_takes_the_new_corefile(tmp_path: Path, ports: DnsPorts) -> None:
    with name_server(ports.envoy, MESH, exact=True), name_server(ports.resolver, WORLD) as world:
        async with coredns(tmp_path, ports.corefile(ForwardMethod.NEXT, resolvers=False), ports.dns) as running:
            assert await running.query("other.example.org") == ("NXDOMAIN", [])
            (tmp_path / "Corefile").write_text(ports.corefile(ForwardMethod.NEXT))
            assert running.component.reload()

            async def taken() -> bool:
                return await running.query("other.example.org") == ("NOERROR", ["192.0.2.80"])

            await poll_async(taken, what="an answer of the new resolver")
            assert world.queries
            assert running.states.count(ChildState.RUNNING) == 1


async def test_a_corefile_that_cannot_be_loaded_fails_permanently_with_the_error_of_coredns(
    tmp_path: Path, ports: DnsPorts
) -> None:
    async with coredns(tmp_path, f".:{ports.dns} {{\n    no-such-plugin\n}}\n", ports.dns) as running:
        (reason,) = running.reasons
        assert "no-such-plugin" in reason
        assert "Corefile:2" in reason
        assert running.states.count(ChildState.STARTING) <= 2
        assert running.states[-1] is ChildState.FATAL


async def test_a_spent_budget_is_reported_and_raises_nothing(tmp_path: Path, ports: DnsPorts) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", ports.dns))
        async with coredns(
            tmp_path, f".:{ports.dns} {{\n    bind 127.0.0.1\n    whoami\n}}\n", ports.dns, budget=1
        ) as running:
            (reason,) = running.reasons
            assert "restart budget spent (1 in 300 s)" in reason
