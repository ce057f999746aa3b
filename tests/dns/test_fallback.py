"""Somebody answers on CoreDNS's port while CoreDNS does not."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from kumadp.dns.coredns.corefile import Way
from kumadp.process.restart_policy import ChildState
from tests.dns.test_coredns import MESH, Ports, Running, coredns
from tests.support.dns_load import dns_load
from tests.support.nameservers import SharedPort, name_server
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

STAND_IN = {"backend.mesh": "240.0.0.99"}
FROM_COREDNS, FROM_STAND_IN = ("NOERROR", ["240.0.0.1"]), ("NOERROR", ["240.0.0.99"])


@pytest.fixture
def ports() -> Ports:
    return Ports.take()


@pytest.fixture(params=["built-in", "on all addresses", "on 0.0.0.0"])
def corefile(request: pytest.FixtureRequest, ports: Ports) -> str:
    """Ours, and templates with the addresses that users have in theirs."""
    bind = "    bind 0.0.0.0\n" if request.param == "on 0.0.0.0" else ""
    user = f".:{ports.dns} {{\n{bind}    forward . 127.0.0.1:{ports.envoy} {{\n        prefer_udp\n    }}\n}}\n"
    return ports.corefile(Way.NEXT) if request.param == "built-in" else user


def kill(running: Running, number: int) -> None:
    child = running.component.supervisor.child
    assert child is not None
    child.send_signal(number)


@pytest.mark.parametrize("tcp", [False, True])
async def test_it_is_coredns_that_answers_while_it_runs(tmp_path: Path, ports: Ports, corefile: str, tcp: bool) -> None:
    stand_in = SharedPort(ports.dns, STAND_IN)
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, corefile, ports.dns, stand_in=stand_in) as running:
            for _ in range(2):
                for _ in range(20):
                    assert await running.ask("backend.mesh", tcp=tcp) == FROM_COREDNS
                assert not running.component.stands_in
                kill(running, signal.SIGKILL)
                await running.running(running.states.count(ChildState.RUNNING) + 1)
    assert stand_in.asked == []
    assert not stand_in.is_open


async def test_it_answers_for_good_once_coredns_is_given_up(tmp_path: Path, ports: Ports, corefile: str) -> None:
    stand_in = SharedPort(ports.dns, STAND_IN)
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, corefile, ports.dns, budget=0, stand_in=stand_in) as running:
            assert await running.ask("backend.mesh") == FROM_COREDNS
            kill(running, signal.SIGKILL)

            async def given_up() -> bool:
                return bool(running.stories)

            await poll_async(given_up, what="the story of its end")
            assert "signal 9 (KILL)" in running.stories[0]
            for tcp in (False, True):
                assert await running.ask("backend.mesh", tcp=tcp) == FROM_STAND_IN
            assert running.component.stands_in


async def test_one_that_never_starts_is_stood_in_for(tmp_path: Path, ports: Ports) -> None:
    stand_in = SharedPort(ports.dns, STAND_IN)
    async with coredns(tmp_path, f".:{ports.dns} {{\n    nothing\n}}\n", ports.dns, stand_in=stand_in) as running:
        assert "Unknown directive 'nothing'" in running.stories[0]
        assert await running.ask("backend.mesh") == FROM_STAND_IN


async def test_a_stopped_coredns_is_stood_in_for(tmp_path: Path, ports: Ports, corefile: str) -> None:
    stand_in = SharedPort(ports.dns, STAND_IN)
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, corefile, ports.dns, stand_in=stand_in) as running:
            kill(running, signal.SIGSTOP)
            await running.running(2)
            assert await running.ask("backend.mesh") == FROM_COREDNS


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1], ids=lambda end: end.name)
async def test_no_query_is_lost_after_one_retry(
    tmp_path: Path, ports: Ports, corefile: str, end: signal.Signals
) -> None:
    stand_in = SharedPort(ports.dns, MESH)
    with name_server(ports.envoy, MESH, exact=True):
        async with coredns(tmp_path, corefile, ports.dns, stand_in=stand_in) as running:
            with dns_load(ports.dns, "backend.mesh", rate=1000, seconds=8) as load:
                for _ in range(3):
                    await asyncio.sleep(1)
                    if end == signal.SIGUSR1:
                        assert running.component.reload()
                        continue
                    kill(running, end)
                    await running.running(running.states.count(ChildState.RUNNING) + 1)
                counts = await asyncio.to_thread(load.counts)
    assert counts.sent == 8000
    assert (counts.answered, counts.lost, counts.wrong) == (8000, 0, 0)
    assert bool(stand_in.asked) is (end != signal.SIGUSR1)
