"""The real CoreDNS with our Corefile, between an upstream in Envoy's place and one in the resolvers'."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dns.message
import dns.query
import dns.rcode
import dns.rrset
import pytest

from kumadp.dns.coredns import CoreDnsComponent, coredns_plugins, coredns_version, find_coredns
from kumadp.dns.corefile import CorefileFacts, built_in
from kumadp.process.child import Command
from kumadp.process.policy import ChildState, RestartPolicy
from tests.support.needs import need_coredns
from tests.support.poll import poll_async
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@dataclass
class Upstream:
    """A name server on loopback that knows some names, says NXDOMAIN to the rest and remembers what it was asked."""

    port: int
    known: dict[str, str]
    asked: list[str] = field(default_factory=list)

    def answer(self, wire: bytes) -> bytes:
        query = dns.message.from_wire(wire)
        name = query.question[0].name.to_text().rstrip(".").lower()
        self.asked.append(name)
        answer = dns.message.make_response(query)
        if name in self.known:
            answer.answer.append(dns.rrset.from_text(query.question[0].name, 30, "IN", "A", self.known[name]))
        else:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer.to_wire()


@contextlib.contextmanager
def upstream(port: int, **known: str) -> Iterator[Upstream]:
    served = Upstream(port, {name.replace("__", "."): address for name, address in known.items()})
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                wire, peer = sock.recvfrom(4096)
                if wire == b"end":
                    return
                sock.sendto(served.answer(wire), peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"end", ("127.0.0.1", port))
        thread.join(10)
        sock.close()


@dataclass
class Running:
    """A CoreDNS that answers."""

    component: CoreDnsComponent
    port: int
    states: list[ChildState]
    stories: list[str]

    async def ask(self, name: str, *, tcp: bool = False) -> tuple[str, list[str]]:
        query = dns.message.make_query(name, "A")
        send = dns.query.tcp if tcp else dns.query.udp
        answer = await asyncio.to_thread(send, query, "127.0.0.1", port=self.port, timeout=10)
        return dns.rcode.to_text(answer.rcode()), [str(item) for found in answer.answer for item in found]


@contextlib.asynccontextmanager
async def coredns(folder: Path, corefile: str, port: int, *, budget: int = 5) -> AsyncIterator[Running]:
    binary = need_coredns()
    path = folder / "Corefile"
    path.write_text(corefile)
    environment = {"PATH": os.environ.get("PATH", "")}

    async def command() -> Command:
        return Command((str(binary), "-conf", str(path), "-quiet"), "coredns", environment)

    states: list[ChildState] = []
    stories: list[str] = []
    component = CoreDnsComponent(
        command,
        port,
        RestartPolicy(budget),
        grace=5.0,
        changed=lambda report: states.append(report.state),
        gave_up=stories.append,
    )
    up = asyncio.Event()
    task = asyncio.create_task(component.run(up.set))
    try:
        running = Running(component, port, states, stories)

        async def settled() -> bool:
            return up.is_set() or bool(stories)

        await poll_async(settled, what="CoreDNS up or given up")
        yield running
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass
class Ports:
    dns: int
    envoy: int
    metrics: int
    resolver: int

    @classmethod
    def take(cls) -> Ports:
        return cls(*free_ports(4))

    def facts(self) -> CorefileFacts:
        return CorefileFacts(self.dns, self.envoy, self.metrics, logging=False, binary="", config_dir="")


async def corefile_of(folder: Path, ports: Ports) -> str:
    """Our Corefile, with a resolver at a port of the test's own: resolv.conf knows port 53 only."""
    path = folder / "resolv.conf"
    path.write_text("nameserver 127.0.0.1\n")
    text = built_in(ports.facts(), await coredns_plugins(need_coredns(), {}), path)
    return text.replace(str(path), f"127.0.0.1:{ports.resolver}")


async def test_version_and_plugins_of_the_real_binary() -> None:
    binary = need_coredns()
    assert (await coredns_version(binary, {})).count(".") == 2
    assert "forward" in await coredns_plugins(binary, {})
    assert find_coredns(str(binary)) == binary.absolute()
    assert find_coredns("no-such-coredns") is None


async def test_what_is_no_coredns_has_no_version(tmp_path: Path) -> None:
    script = tmp_path / "coredns"
    script.write_text("#!/bin/sh\necho hello to you\nexit 1\n")
    script.chmod(0o755)
    assert await coredns_version(script, {}) == ""
    assert await coredns_plugins(script, {}) == frozenset()


async def test_plugins_of_an_older_coredns_are_read_too(tmp_path: Path) -> None:
    script = tmp_path / "coredns"
    script.write_text(
        "#!/bin/sh\nprintf 'Server types:\\n  dns\\n\\nOther plugins:\\n  dns.alternate\\n  dns.forward\\n'\n"
    )
    script.chmod(0o755)
    assert await coredns_plugins(script, {}) >= {"alternate", "forward"}


@pytest.mark.parametrize("tcp", [False, True])
async def test_names_of_the_mesh_come_from_envoy_and_never_leak(tmp_path: Path, tcp: bool) -> None:
    ports = Ports.take()
    with (
        upstream(ports.envoy, backend__mesh="127.0.0.1") as envoy,
        _resolver(ports.resolver) as resolvers,
    ):
        async with coredns(tmp_path, await corefile_of(tmp_path, ports), ports.dns) as running:
            assert await running.ask("other.example.org", tcp=tcp) == ("NOERROR", ["192.0.2.80"])
            assert await running.ask("nothing.example.org", tcp=tcp) == ("NXDOMAIN", [])
            # Envoy's filter speaks UDP alone: what came by TCP is asked by UDP.
            assert await running.ask("backend.mesh", tcp=tcp) == ("NOERROR", ["127.0.0.1"])
            assert await running.ask("unknown.mesh", tcp=tcp) == ("NXDOMAIN", [])
        assert "other.example.org" in resolvers.asked
        assert not [name for name in resolvers.asked if name.endswith("mesh")]
        assert "backend.mesh" in envoy.asked


@contextlib.contextmanager
def _resolver(port: int) -> Iterator[Upstream]:
    """A resolver, UDP and TCP."""
    with upstream(port, other__example__org="192.0.2.80") as served:
        listener = socket.create_server(("127.0.0.1", port))
        ended = threading.Event()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while not ended.is_set():
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        length = int.from_bytes(connection.recv(2), "big")
                        wire = served.answer(connection.recv(length))
                        connection.sendall(len(wire).to_bytes(2, "big") + wire)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield served
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


async def test_names_of_the_mesh_do_not_leak_while_envoy_is_away(tmp_path: Path) -> None:
    ports = Ports.take()
    with _resolver(ports.resolver) as resolvers:
        async with coredns(tmp_path, await corefile_of(tmp_path, ports), ports.dns) as running:
            assert (await running.ask("backend.mesh"))[0] == "SERVFAIL"
            assert resolvers.asked == []


async def test_it_starts_where_resolv_conf_is_empty(tmp_path: Path) -> None:
    ports = Ports.take()
    (tmp_path / "resolv.conf").touch()
    corefile = built_in(ports.facts(), frozenset(), tmp_path / "resolv.conf")
    with upstream(ports.envoy, backend__mesh="127.0.0.1"):
        async with coredns(tmp_path, corefile, ports.dns) as running:
            assert await running.ask("backend.mesh") == ("NOERROR", ["127.0.0.1"])


async def test_a_killed_coredns_comes_back(tmp_path: Path) -> None:
    ports = Ports.take()
    (tmp_path / "resolv.conf").touch()
    with upstream(ports.envoy, backend__mesh="127.0.0.1"):
        corefile = built_in(ports.facts(), frozenset(), tmp_path / "resolv.conf")
        async with coredns(tmp_path, corefile, ports.dns) as running:
            child = running.component.supervisor.child
            assert child is not None
            child.send_signal(9)

            async def back() -> bool:
                return running.states.count(ChildState.RUNNING) == 2

            await poll_async(back, what="the second CoreDNS")
            assert await running.ask("backend.mesh") == ("NOERROR", ["127.0.0.1"])
            assert ChildState.BACKOFF in running.states
            assert running.stories == []


async def test_a_corefile_that_cannot_be_loaded_is_given_up_at_once_with_coredns_s_words(tmp_path: Path) -> None:
    ports = Ports.take()
    async with coredns(tmp_path, f".:{ports.dns} {{\n    no-such-plugin\n}}\n", ports.dns) as running:
        (story,) = running.stories
        assert "no-such-plugin" in story
        assert "Corefile:2" in story
        assert running.states.count(ChildState.STARTING) <= 2
        assert running.states[-1] is ChildState.FATAL


async def test_a_spent_budget_is_told_and_raises_nothing(tmp_path: Path) -> None:
    ports = Ports.take()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", ports.dns))
        async with coredns(
            tmp_path, f".:{ports.dns} {{\n    bind 127.0.0.1\n    whoami\n}}\n", ports.dns, budget=1
        ) as running:
            (story,) = running.stories
            assert "restart budget spent (1 in 300 s)" in story
