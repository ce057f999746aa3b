"""Names of the mesh as a part of the daemon, with the embedded resolver."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import dns.asyncquery
import dns.message
import msgspec
import pytest

from kumadp.core.context import Context, Inputs
from kumadp.core.previous import Previous
from kumadp.dns import part as part_module
from kumadp.dns.part import DnsPart
from kumadp.dns.resolver.table import HandedNames
from kumadp.errors import BinaryNotFound
from kumadp.resources.dynconf_bodies import DnsBody, DnsRecord
from kumadp.settings.model import Settings
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BODY = DnsBody(records=(DnsRecord("backend.mesh", ("240.0.0.1",)),), extra_labels={"zone": "east"})


def context_of(*, standalone: bool = False, **settings: Any) -> Context:
    chosen = Settings(name="web", mesh="default", coredns_port=free_port(), **settings)
    return Context(Inputs(chosen, None, {}, standalone=standalone))


@pytest.fixture(autouse=True)
def _resolv_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_module, "RESOLV_CONF", tmp_path / "resolv.conf")
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    shared = context_of(dns_mode="embedded")
    yield shared
    await shared.stack.leave()


async def started(context: Context, previous: Previous | None = None) -> DnsPart:
    part = DnsPart(context)
    await part.check()
    part.make_plan()
    part.adopt(previous or Previous())
    await part.start()
    if part.plan is not None:
        # Once it answers, its sockets are closed with it.
        message = dns.message.make_query("health.kumadp.invalid", "A")
        await dns.asyncquery.udp(message, "127.0.0.1", port=part.plan.port, timeout=10)
    return part


async def test_a_required_coredns_must_exist() -> None:
    with pytest.raises(BinaryNotFound):
        await DnsPart(context_of(dns_mode="coredns")).check()


async def test_without_dns_there_is_nothing() -> None:
    context = context_of(dns_mode="off")
    part = await started(context)
    await part.apply_names(BODY)
    part.set_names({"backend.mesh": ["127.0.0.1"]})
    part.on_absent()
    part.kill()
    assert (part.plan, part.status(), part.hand_over(), part.counters(), part.metrics_address()) == (
        None,
        {},
        None,
        None,
        None,
    )
    assert context.status.reasons == {}
    assert await part.version() == ""


async def test_readiness_waits_for_names(context: Context) -> None:
    part = await started(context)
    assert context.status.reasons == {"dns": "names of the mesh have not come yet"}
    assert context.status.ports["dns"] == f"0.0.0.0:{context.settings.coredns_port}"
    assert part.status() == {"dns": {"answered_by": "the embedded resolver", "corefile": ""}}
    assert part.children() == ()
    await part.apply_names(BODY)
    async with asyncio.timeout(10):
        await part._gate
    assert context.status.reasons == {}


async def test_readiness_does_not_wait_forever(
    context: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(part_module, "DNS_GATE", 0.05)
    part = await started(context)
    async with asyncio.timeout(10):
        await part._gate
    assert context.status.reasons == {}
    assert "no names have come for 0 s" in caplog.text


async def test_names_are_handed_over_and_resumed(context: Context) -> None:
    part = await started(context)
    assert part.hand_over() is None
    await part.apply_names(BODY)
    handed = part.hand_over()
    assert handed is not None
    assert isinstance(handed.content, HandedNames)
    assert handed.descriptors == ()
    await context.stack.leave()
    second = context_of(dns_mode="embedded")
    previous = Previous(sections={"dns": msgspec.msgpack.encode(handed.content)})
    again = await started(second, previous)
    try:
        counters = again.counters()
        assert counters is not None
        assert counters[1:] == (1, {"zone": "east"})
        assert again.hand_over() == handed
    finally:
        await second.stack.leave()


async def test_nothing_is_adopted_from_a_kumadp_that_left_nothing(context: Context) -> None:
    part = DnsPart(context)
    part.adopt(Previous())
    assert part.children() == ()
    await part.end_adopted()
