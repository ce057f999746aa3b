"""The fallback answers on CoreDNS's port while CoreDNS does not."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from kumadp.dns.coredns.corefile import ForwardMethod
from kumadp.process.restart_policy import ChildState
from tests.dns.test_coredns import MESH, DnsPorts, Running, coredns
from tests.support.dns_load import dns_load
from tests.support.nameservers import SharedPort, name_server
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

FALLBACK = {"backend.mesh": "240.0.0.99"}
FROM_COREDNS, FROM_FALLBACK = ("NOERROR", ["240.0.0.1"]), ("NOERROR", ["240.0.0.99"])


@pytest.fixture
def ports() -> DnsPorts:
    return DnsPorts.take()


@pytest.fixture(params=["built-in", "on all addresses", "on 0.0.0.0"])
def corefile(request: pytest.FixtureRequest, ports: DnsPorts) -> str:
    """Ours, and templates with the addresses that users have in theirs."""
    bind = "    bind 0.0.0.0\n" if request.param == "on 0.0.0.0" else ""
    user = f".:{ports.dns} {{\n{bind}    forward . 127.0.0.1:{ports.envoy} {{\n        prefer_udp\n    }}\n}}\n"
    return ports.corefile(ForwardMethod.NEXT) if request.param == "built-in" else user


def kill(running: Running, number: int) -> None:
    child = running.component.supervisor.child
    assert child is not None
    child.send_signal(number)


@pytest.mark.parametrize("tcp", [False, True])
async def test_it_is_coredns_that_answers_while_it_runs(
    tmp_path: Path, ports: DnsPorts, corefile: str, tcp: bool
) -> None:
    fallback = SharedPort(ports.dns, FALLBACK)
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, corefile, ports.dns, fallback=fallback) as running:
            for _ in range(2):
                for _ in range(20):
                    assert await running.query("backend.mesh", tcp=tcp) == FROM_COREDNS
                assert not running.component.uses_fallback
                kill(running, signal.SIGKILL)
                await running.running(running.states.count(ChildState.RUNNING) + 1)
    assert fallback.queries == []
    assert not fallback.is_open


async def test_it_answers_permanently_once_the_budget_is_spent(tmp_path: Path, ports: DnsPorts, corefile: str) -> None:
    fallback = SharedPort(ports.dns, FALLBACK)
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, corefile, ports.dns, budget=0, fallback=fallback) as running:
            assert await running.query("backend.mesh") == FROM_COREDNS
            kill(running, signal.SIGKILL)

            async def failed() -> bool:
                return bool(running.reasons)

            await poll_async(failed, what="the reason of its end")
            assert "signal 9 (KILL)" in running.reasons[0]
            for tcp in (False, True):
                assert await running.query("backend.mesh", tcp=tcp) == FROM_FALLBACK
            assert running.component.uses_fallback


async def test_it_answers_if_coredns_never_starts(tmp_path: Path, ports: DnsPorts) -> None:
    fallback = SharedPort(ports.dns, FALLBACK)
    async with coredns(tmp_path, f".:{ports.dns} {{\n    nothing\n}}\n", ports.dns, fallback=fallback) as running:
        assert "Unknown directive 'nothing'" in running.reasons[0]
        assert await running.query("backend.mesh") == FROM_FALLBACK


async def test_it_answers_for_a_stopped_coredns(tmp_path: Path, ports: DnsPorts, corefile: str) -> None:
    fallback = SharedPort(ports.dns, FALLBACK)
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, corefile, ports.dns, fallback=fallback) as running:
            kill(running, signal.SIGSTOP)
            await running.running(2)
            assert await running.query("backend.mesh") == FROM_COREDNS


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1], ids=lambda end: end.name)
async def test_no_query_is_lost_after_one_retry(
    tmp_path: Path, ports: DnsPorts, corefile: str, end: signal.Signals
) -> None:
    fallback = SharedPort(ports.dns, MESH)
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, corefile, ports.dns, fallback=fallback) as running:
            with dns_load(ports.dns, "backend.mesh", rate=2000, seconds=10) as load:
                for _ in range(3):
                    # Longer than a query waits before its retry: otherwise that could meet the next end of CoreDNS.
                    await asyncio.sleep(2)
                    if end == signal.SIGUSR1:
                        assert running.component.reload()
                        continue
                    kill(running, end)
                    await running.running(running.states.count(ChildState.RUNNING) + 1)
                counts = await asyncio.to_thread(load.counts)
    assert counts.sent == 20_000
    assert (counts.answered, counts.lost, counts.wrong) == (20_000, 0, 0)
    assert bool(fallback.queries) is (end != signal.SIGUSR1)
