"""Checks of applications, against ports that are open or closed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec
import pytest

from kumadp.resources.types import ServiceProbe
from kumadp.standalone import health
from kumadp.standalone.health import HealthWatch, ServiceCheck, checks_of
from kumadp.standalone.mesh import read_mesh
from tests.standalone.meshes import PROBE, ours
from tests.support.mesh import inbound, write
from tests.support.poll import poll_async
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HOST = "127.0.0.1"
INBOUND = (HOST, 18080)


def check(port: int, **probe: object) -> ServiceCheck:
    return ServiceCheck(INBOUND, HOST, port, msgspec.convert({"interval": "0.02s", **probe, "tcp": {}}, ServiceProbe))


@contextlib.asynccontextmanager
async def application(port: int) -> AsyncIterator[None]:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), HOST, port)
    try:
        yield
    finally:
        server.close()


class Watched:
    def __init__(self) -> None:
        self.changes: list[frozenset[tuple[str, int]]] = []
        self.watch = HealthWatch(lambda: self.changes.append(self.watch.unhealthy))

    async def wait_for(self, *, unhealthy: bool) -> None:
        async def changed() -> bool:
            return (INBOUND in self.watch.unhealthy) is unhealthy

        await poll_async(changed, what="a change of health")


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    result = Watched()
    yield result
    await result.watch.close()


async def test_the_first_check_needs_no_threshold(watched: Watched) -> None:
    watched.watch.follow(frozenset({check(free_port(), unhealthyThreshold=1000)}))
    await watched.wait_for(unhealthy=True)
    assert watched.changes == [frozenset({INBOUND})]


async def test_an_application_that_starts_and_ends(watched: Watched) -> None:
    port = free_port()
    async with application(port):
        watched.watch.follow(frozenset({check(port, unhealthyThreshold=2)}))
        await asyncio.sleep(0.1)
        assert watched.changes == []
    await watched.wait_for(unhealthy=True)
    async with application(port):
        await watched.wait_for(unhealthy=False)
    assert watched.changes[:2] == [frozenset({INBOUND}), frozenset()]


@pytest.mark.parametrize(("threshold", "connections"), [(1, 2), (3, 4)])
async def test_thresholds_count_consecutive_results(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, threshold: int, connections: int
) -> None:
    # Healthy at first, then not.
    results = iter([True] + [False] * 1000)
    count = 0

    async def connects(_host: str, _port: int, _timeout: float) -> bool:
        nonlocal count
        count += 1
        return next(results)

    monkeypatch.setattr(health, "_connects", connects)
    reached: list[int] = []
    watch = HealthWatch(lambda: reached.append(count))
    watch.follow(frozenset({check(9, interval="0.001s", unhealthyThreshold=threshold)}))
    while not reached:
        await asyncio.sleep(0.001)
    await watch.close()
    assert reached[0] == connections


async def test_without_descriptors_nothing_changes(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connects(_host: str, _port: int, _timeout: float) -> None:
        return None

    monkeypatch.setattr(health, "_connects", connects)
    watched.watch.follow(frozenset({check(9)}))
    await asyncio.sleep(0.1)
    assert watched.changes == []


async def test_a_changed_check_keeps_the_state_and_a_removed_one_does_not(watched: Watched) -> None:
    port = free_port()
    watched.watch.follow(frozenset({check(port)}))
    await watched.wait_for(unhealthy=True)
    watched.watch.follow(frozenset({check(port, healthyThreshold=2)}))
    assert watched.watch.unhealthy == {INBOUND}
    watched.watch.follow(frozenset())
    assert watched.watch.unhealthy == frozenset()
    assert watched.changes == [frozenset({INBOUND}), frozenset()]


def test_checks_of_a_mesh(tmp_path: Path) -> None:
    inbounds = [
        inbound(18080, 8080, serviceProbe=PROBE),
        inbound(18081, 8081),
        inbound(18082, 8082, serviceProbe=PROBE, state="Ignored"),
        inbound(18083, 8083, serviceProbe=PROBE, address="10.0.0.3", serviceAddress="10.0.0.4"),
    ]
    mesh = read_mesh(write(tmp_path, ours(inbounds=inbounds, address="10.0.0.1")), "web")
    assert {(one.inbound, one.host, one.port) for one in checks_of(mesh)} == {
        (("10.0.0.1", 18080), "127.0.0.1", 8080),
        (("10.0.0.3", 18083), "10.0.0.4", 8083),
    }
