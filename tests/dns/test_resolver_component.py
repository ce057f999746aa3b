"""The embedded resolver in a run: where its names come from, and when readiness has nothing to wait for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from kumadp.core.context import Context, Inputs
from kumadp.dns.plan import DnsPlan
from kumadp.dns.resolver import component
from kumadp.dns.resolver.component import EmbeddedResolver
from kumadp.resources.dynconf_bodies import DnsBody, DnsRecord
from kumadp.settings.model import Settings
from tests.dns.test_resolver import HOST, Upstream, send_query, texts
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from kumadp.dns.resolver.table import HandedNames

BODY = DnsBody(records=(DnsRecord("backend.mesh", ("240.0.0.1",)),), ttl=7, extra_labels={"zone": "east"})


def made(
    resolv_conf: Path, *, envoy: int = 0, standalone: bool = False, handed: HandedNames | None = None
) -> EmbeddedResolver:
    (port,) = free_ports(1)
    settings = Settings(name="web", mesh="default", envoy_dns_port=envoy)
    plan = DnsPlan(None, port, envoy, 0, (HOST,))
    return EmbeddedResolver(Context(Inputs(settings, None, {}, standalone=standalone)), plan, resolv_conf, handed)


@contextlib.asynccontextmanager
async def running(resolver: EmbeddedResolver) -> AsyncIterator[EmbeddedResolver]:
    up = asyncio.Event()
    task = asyncio.create_task(resolver.run(up.set))
    try:
        async with asyncio.timeout(10):
            await up.wait()
        yield resolver
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    return tmp_path / "resolv.conf"


async def test_names_of_the_control_plane(resolv_conf: Path) -> None:
    (closed,) = free_ports(1)
    async with running(made(resolv_conf, envoy=closed)) as resolver:
        assert not resolver.settled.is_set()
        assert resolver.hand_over() is None
        await resolver.apply(BODY)
        assert resolver.ready.is_set()
        assert resolver.settled.is_set()
        assert resolver.labels == {"zone": "east"}
        answer = await send_query(resolver.resolver, "backend.mesh")
        assert texts(answer) == ["240.0.0.1"]
        assert answer.answer[0].ttl == 7
        assert resolver.resolver.upstreams.envoy is None
        # Without a body Envoy has its filter again, and the last TTL stays.
        await resolver.apply(None)
        assert len(resolver.resolver.table) == 0
        assert resolver.resolver.upstreams.envoy == (HOST, closed)


async def test_invalid_names_are_a_warning_until_they_are_valid(resolv_conf: Path) -> None:
    async with running(made(resolv_conf)) as resolver:
        await resolver.apply(DnsBody(records=(DnsRecord("a..mesh", ()), DnsRecord("b.mesh", ("no",)))))
        assert resolver._context.status.warnings == {"names": "2 cannot be used: a..mesh, b.mesh"}
        await resolver.apply(BODY)
        assert resolver._context.status.warnings == {}


async def test_names_of_dataplane_files_are_used_in_lower_case(resolv_conf: Path) -> None:
    async with running(made(resolv_conf, standalone=True)) as resolver:
        resolver.set_names({"Backend.mesh": {"127.0.0.9"}, "backend.mesh": {"127.0.0.9"}})
        assert len(resolver.resolver.table) == 1
        assert texts(await send_query(resolver.resolver, "BACKEND.mesh")) == ["127.0.0.9"]


async def test_handed_names_are_answered_at_once(resolv_conf: Path) -> None:
    first = made(resolv_conf, standalone=True)
    first.set_names({"backend.mesh": ["127.0.0.9"]})
    handed = first.hand_over()
    assert handed is not None
    await first.resolver.close()
    async with running(made(resolv_conf, envoy=9, handed=handed)) as resolver:
        assert resolver.settled.is_set()
        assert texts(await send_query(resolver.resolver, "backend.mesh")) == ["127.0.0.9"]
        assert resolver.resolver.upstreams.envoy is None
        assert resolver.hand_over() == handed


async def test_envoys_filter_is_probed_until_it_answers(resolv_conf: Path) -> None:
    async with Upstream("240.0.0.9").serving() as envoy:
        envoy.exact = True
        async with running(made(resolv_conf, envoy=envoy.port)) as resolver:
            async with asyncio.timeout(10):
                await resolver.ready.wait()
            assert texts(await send_query(resolver.resolver, "backend.mesh")) == ["240.0.0.9"]
            assert resolver.resolver.counters.ready_after is not None


async def test_without_names_and_without_a_filter_nothing_is_waited_for(
    resolv_conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(component, "_PROBE_AGAIN", 0.01)
    (closed,) = free_ports(1)
    async with running(made(resolv_conf, envoy=closed)) as resolver:
        await asyncio.sleep(0.05)
        assert not resolver.settled.is_set()
        resolver.on_absent()
        async with asyncio.timeout(10):
            await resolver.settled.wait()
        assert not resolver.ready.is_set()


def write(resolv_conf: Path, port: int, options: str = "") -> None:
    resolv_conf.write_text(f"nameserver [{HOST}]:{port}\n{options}")


async def test_a_changed_resolv_conf_is_followed(resolv_conf: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with Upstream("192.0.2.1").serving() as first, Upstream("192.0.2.2").serving() as second:
        write(resolv_conf, first.port, "options nothing\n")
        async with running(made(resolv_conf, standalone=True)) as resolver:
            assert texts(await send_query(resolver.resolver, "www.example.com")) == ["192.0.2.1"]
            write(resolv_conf, second.port)
            await resolver.follow()
            await resolver.follow()
            assert texts(await send_query(resolver.resolver, "www.example.com")) == ["192.0.2.2"]
    assert caplog.text.count("line 2: option nothing is not known") == 1
    assert caplog.text.count(f"other names are forwarded to {HOST}:{second.port}") == 1


async def test_a_resolv_conf_that_has_only_kumadp_is_a_warning(
    resolv_conf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = made(resolv_conf, standalone=True)
    write(resolv_conf, resolver.resolver.addresses[0][1])
    async with running(resolver):
        assert "other names are unknown" in caplog.text
