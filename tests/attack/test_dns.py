"""Clients of the embedded resolver that want more than their share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import pytest

from kumadp.dns.resolvconf import ResolvConf
from kumadp.host import descriptors
from tests.dns.test_resolver import HOST, resolver, send_query, texts
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kumadp.dns.resolver.server import Resolver

__all__ = ["resolver"]

MANY = 3000


def opened() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def silent() -> Iterator[tuple[str, int]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        yield sock.getsockname()


@pytest.mark.attack
async def test_queries_to_silent_servers_take_a_bounded_number_of_descriptors(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "limit", lambda: 1024)
    with silent() as first, silent() as second:
        resolver.upstreams.conf = ResolvConf((first, second))
        before, most = opened(), 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind(("127.0.0.2", 0))
            client.setblocking(False)
            for number in range(MANY):
                query = dns.message.make_query(f"{number}.example.com", "A").to_wire()
                with contextlib.suppress(BlockingIOError):
                    client.sendto(query, (HOST, resolver.addresses[0][1]))
                if number % 50 == 0:
                    await asyncio.sleep(0.005)
                    most = max(most, opened())
            assert resolver.counters.refused > 0
            assert most - before <= 1024 // 3
            # A client with few queries is still served: names of the mesh and names of other servers.
            assert texts(await send_query(resolver, "backend.mesh")) == ["240.0.0.1"]
            assert texts(await send_query(resolver, "backend.mesh", tcp=True)) == ["240.0.0.1"]
            assert (await send_query(resolver, "other.example.com")).rcode() == dns.rcode.SERVFAIL

        async def given_back() -> bool:
            return opened() <= before + 4

        await poll_async(given_back, what="descriptors given back", deadline=30)


async def test_one_address_that_holds_every_place_costs_no_other_address_its_answers(resolver: Resolver) -> None:
    port = resolver.addresses[0][1]
    wire = dns.message.make_query("backend.mesh", "A").to_wire()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(300):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, port, local_addr=("127.0.0.2", 0))
                stack.callback(writer.close)
                # Half a query, a whole one, none.
                writer.write((b"", b"\x00", len(wire).to_bytes(2) + wire)[number % 3])
        for _ in range(10):
            assert texts(await send_query(resolver, "backend.mesh", tcp=True)) == ["240.0.0.1"]
