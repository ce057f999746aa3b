"""A control plane of another generation under a kumadp that runs: who answers names, and that no query is lost."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import dns.asyncquery
import dns.message
import msgspec
import pytest

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.bootstrap.generation import Generation
from kumadp.bootstrap.prepare import Prepared
from kumadp.core.context import Context, Inputs
from kumadp.core.previous import Previous
from kumadp.dns import part as part_module
from kumadp.dns.part import DnsPart
from kumadp.dns.resolver import component
from kumadp.host.work_dir import WorkDir
from kumadp.resources.dynconf_bodies import DnsBody, DnsRecord
from kumadp.settings.model import Settings
from tests.dns.test_resolver import send_query, texts
from tests.dns.test_resolver_component import BODY, made, running
from tests.support.dns_load import dns_load
from tests.support.nameservers import name_server
from tests.support.needs import need_coredns
from tests.support.poll import poll_async
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NAME = "backend.svc.mesh.local"
NAMES = DnsBody(records=(DnsRecord(NAME, ("241.0.0.1",)),))


class Rig:
    """DNS in a run with a CoreDNS on PATH, and a Dataplane that only the control plane has: names are expected."""

    def __init__(self, folder: Path, coredns: Path, **settings: Any) -> None:
        self.port, self.envoy, metrics = free_ports(3)
        ports: dict[str, Any] = {
            "coredns_port": self.port,
            "envoy_dns_port": self.envoy,
            "dns_prometheus_port": metrics,
        }
        chosen = Settings(name="web", mesh="default", coredns_path=str(coredns), **ports, **settings)
        self.context = Context(Inputs(chosen, None, {}))
        self.context.use_work_dir(WorkDir(folder, folder, folder, temporary=False))
        self.part = DnsPart(self.context)
        self.previous = Previous()
        self.context.parts = [self.part]

    @contextlib.asynccontextmanager
    async def running(self, generation: Generation) -> AsyncIterator[DnsPart]:
        part = self.part
        await part.check()
        part.make_plan()
        part.adopt(self.previous)
        self.context.note_generation(generation)
        admin = TcpAdmin("127.0.0.1", 9901)
        self.context.bootstrap = Prepared(self.context.work.path / "bootstrap.yaml", admin, None, dynamic=True)
        await part.start()
        if part.plan is not None and part.plan.coredns is None:
            # Once it answers, its sockets are closed with it.
            message = dns.message.make_query("health.kumadp.invalid", "A")
            await dns.asyncquery.udp(message, "127.0.0.1", port=self.port, timeout=10)
        try:
            yield part
        finally:
            await self.context.stack.leave()


@pytest.fixture(autouse=True)
def _resolv_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "RESOLV_CONF", tmp_path / "resolv.conf")


@pytest.fixture
def unstartable(tmp_path: Path) -> Path:
    binary = tmp_path / "coredns"
    binary.write_text("#!/bin/sh\ntouch $0.started\nexit 1\n")
    binary.chmod(0o755)
    return binary


async def test_a_start_with_kuma_3_uses_the_embedded_resolver(tmp_path: Path, unstartable: Path) -> None:
    rig = Rig(tmp_path, unstartable)
    async with rig.running(Generation.KUMA_3) as part:
        assert part.plan is not None
        assert (part.plan.coredns, part.plan.port) == (None, rig.port)
        assert part.status() == {"dns": {"answered_by": "the embedded resolver", "corefile": ""}}
        assert rig.context.status.warnings == {}
        await part.apply_names(NAMES)
        counters = part.counters()
        assert counters is not None
        assert counters[1] == 1
    assert not unstartable.with_name("coredns.started").exists()


async def test_a_reexecution_starts_with_the_names_that_were_handed_over(tmp_path: Path, unstartable: Path) -> None:
    rig = Rig(tmp_path, unstartable)
    async with rig.running(Generation.KUMA_3) as part:
        await part.apply_names(NAMES)
        handed = part.hand_over()
        assert handed is not None
    again = Rig(tmp_path, unstartable)
    again.previous = Previous(sections={"dns": msgspec.msgpack.encode(handed.content)})
    # Of the bootstrap that Envoy was started with.
    async with again.running(Generation.KUMA_2) as part:
        assert part.status() == {"dns": {"answered_by": "the embedded resolver", "corefile": ""}}
        counters = part.counters()
        assert counters is not None
        assert counters[1] == 1
    assert not unstartable.with_name("coredns.started").exists()


@pytest.mark.process
async def test_an_explicit_coredns_gets_a_warning(tmp_path: Path) -> None:
    rig = Rig(tmp_path, need_coredns(), dns_mode="coredns")
    async with rig.running(Generation.KUMA_2) as part:
        async with asyncio.timeout(60):
            await part._gate
        assert rig.context.status.warnings == {}
        rig.context.note_generation(Generation.KUMA_3)
        assert (
            "--dns-mode=coredns: a control plane of Kuma 3 gives Envoy no DNS filter"
            in rig.context.status.warnings["dns"]
        )
        assert part.children()
        rig.context.note_generation(Generation.KUMA_2)
        assert rig.context.status.warnings == {}


@pytest.mark.process
async def test_no_query_is_lost_from_2_to_3_and_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, need_coredns())
    with contextlib.ExitStack() as filters:
        filters.enter_context(name_server(rig.envoy, {NAME: "240.0.0.1"}, exact=True))
        async with rig.running(Generation.KUMA_2) as part:
            async with asyncio.timeout(60):
                await part._gate
            assert part.children()
            with dns_load(rig.port, NAME, rate=500, seconds=20, wait=4.0) as load:
                await asyncio.sleep(1)
                rig.context.note_generation(Generation.KUMA_3)

                async def gone() -> bool:
                    return not part.children()

                # It forwards what it received before; Envoy's filter goes with later listeners.
                await poll_async(gone, what="the end of CoreDNS", deadline=30)
                filters.close()
                await asyncio.sleep(1)
                await part.apply_names(NAMES)
                await asyncio.sleep(1)
                filters.enter_context(name_server(rig.envoy, {NAME: "240.0.0.1"}, exact=True))
                rig.context.note_generation(Generation.KUMA_2)

                async def forwards() -> bool:
                    counters = part.counters()
                    return counters is not None and counters[1] == 0

                await poll_async(forwards, what="names of Envoy's filter", deadline=30)
                counts = await asyncio.to_thread(load.counts)
            assert part.status() == {"dns": {"answered_by": "the embedded resolver", "corefile": ""}}
            assert "coredns metrics" not in rig.context.status.ports
    assert counts.sent == 10_000
    assert (counts.answered, counts.lost, counts.wrong) == (10_000, 0, 0)


async def test_queries_wait_for_the_names_that_are_due(tmp_path: Path) -> None:
    (closed,) = free_ports(1)
    async with running(made(tmp_path / "resolv.conf", envoy=closed)) as resolver:
        assert (await send_query(resolver.resolver, "backend.mesh")).rcode() == 2
        resolver.on_generation(Generation.KUMA_3)
        pending = asyncio.create_task(send_query(resolver.resolver, "backend.mesh"))
        other = asyncio.create_task(send_query(resolver.resolver, "other.mesh"))

        async def waits() -> bool:
            return resolver.resolver.upstreams.counters.failed == 3

        await poll_async(waits, what="the queries")
        await resolver.apply(DnsBody())
        assert not pending.done()
        await resolver.apply(BODY)
        assert texts(await pending) == ["240.0.0.1"]
        assert (await other).rcode() == 3
        assert resolver.resolver.names_due is None


async def test_names_that_come_while_the_filter_is_silent_answer_too(tmp_path: Path) -> None:
    (envoy,) = free_ports(1)
    with name_server(envoy, {}, silent=True) as silent:
        async with running(made(tmp_path / "resolv.conf", envoy=envoy)) as resolver:
            resolver.on_generation(Generation.KUMA_3)
            pending = asyncio.create_task(send_query(resolver.resolver, "backend.mesh"))

            async def queried() -> bool:
                return "backend.mesh" in silent.queries

            await poll_async(queried, what="the query")
            await resolver.apply(BODY)
            assert texts(await pending) == ["240.0.0.1"]


async def test_names_that_never_come_are_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "_NAMES_DUE", 0.05)
    (closed,) = free_ports(1)
    async with running(made(tmp_path / "resolv.conf", envoy=closed)) as resolver:
        resolver.on_generation(Generation.KUMA_3)
        await resolver.apply(DnsBody())

        async def over() -> bool:
            return resolver.resolver.names_due is None

        await poll_async(over, what="the end of the wait")

        async def unknown() -> bool:
            return (await send_query(resolver.resolver, "backend.mesh")).rcode() == 3

        await poll_async(unknown, what="the table without names")


async def test_towards_kuma_2_names_answer_until_the_filter_does(tmp_path: Path) -> None:
    (envoy,) = free_ports(1)
    async with running(made(tmp_path / "resolv.conf", envoy=envoy)) as resolver:
        await resolver.apply(BODY)
        resolver.on_generation(Generation.KUMA_2)
        assert texts(await send_query(resolver.resolver, "backend.mesh")) == ["240.0.0.1"]
        with name_server(envoy, {"backend.mesh": "240.0.0.2"}, exact=True):

            async def forwards() -> bool:
                return texts(await send_query(resolver.resolver, "backend.mesh")) == ["240.0.0.2"]

            await poll_async(forwards, what="the filter's answer")
