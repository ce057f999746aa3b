"""The embedded resolver as CoreDNS's fallback: its addresses, and the servers that it forwards to."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import dns.asyncquery
import dns.message
import dns.rcode

from kumadp.dns.coredns.fallback import FallbackResolver
from kumadp.dns.plan import DnsPlan
from tests.dns.test_resolver import HOST, Upstream, texts
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def query(port: int, name: str, host: str = HOST) -> dns.message.Message:
    return await dns.asyncquery.udp(dns.message.make_query(name, "A"), host, timeout=10, port=port)


@contextlib.asynccontextmanager
async def opened(resolv_conf: Path, envoy: int, *coredns: str) -> AsyncIterator[tuple[FallbackResolver, int]]:
    port = free_port()
    fallback = FallbackResolver(DnsPlan(None, port, envoy, 0, suffixes=("mesh",)), resolv_conf, ipv6=False)
    await fallback.open(coredns)
    try:
        yield fallback, port
    finally:
        await fallback.close()


async def test_names_of_the_mesh_come_from_envoy_and_others_from_resolv_conf(tmp_path: Path) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    async with Upstream("240.0.0.9").serving() as envoy, Upstream("192.0.2.1").serving() as world:
        envoy.exact = True
        resolv_conf.write_text(f"nameserver [{HOST}]:{world.port}\n")
        async with opened(resolv_conf, envoy.port) as (fallback, port):
            assert fallback.port_sharing.hosts == {"0.0.0.0"}
            assert texts(await query(port, "backend.mesh")) == ["240.0.0.9"]
            assert (await query(port, "nobody.mesh")).rcode() == dns.rcode.NXDOMAIN
            assert texts(await query(port, "www.example.com")) == ["192.0.2.1"]
            async with Upstream("192.0.2.2").serving() as other:
                resolv_conf.write_text(f"nameserver [{HOST}]:{other.port}\n")
                await fallback.follow()
                assert texts(await query(port, "www.example.com")) == ["192.0.2.2"]


async def test_it_opens_each_address_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "none", 9, "127.0.0.1") as (fallback, port):
        assert fallback.port_sharing.hosts == {"0.0.0.0", "127.0.0.1"}
        await fallback.open(("127.0.0.1",), ("127.0.0.2",))
        assert fallback.port_sharing.hosts == {"0.0.0.0", "127.0.0.1", "127.0.0.2"}
        # Nobody else has 127.0.0.2 on this port.
        assert (await query(port, "health.kumadp.invalid", "127.0.0.2")).rcode() == dns.rcode.REFUSED


async def test_it_may_be_closed_before_it_was_opened_and_opened_again(tmp_path: Path) -> None:
    port = free_port()
    fallback = FallbackResolver(DnsPlan(None, port, 9, 0, suffixes=("mesh",)), tmp_path / "none", ipv6=False)
    await fallback.follow()
    await fallback.close()
    for _ in range(2):
        await fallback.open(())
        assert (await query(port, "health.kumadp.invalid")).rcode() == dns.rcode.REFUSED
        await fallback.close()
        assert fallback.port_sharing.hosts == frozenset()
