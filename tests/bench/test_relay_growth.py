"""The relay with 1,000 and with 5,000 services: nothing grows with the square of their number.

A client takes what Envoy takes and answers at once, so that an Envoy's own time is no part of it. The figures of both
meshes are on one line each with their ratio: five times as much is linear.
"""

from __future__ import annotations

import asyncio
import functools
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.const import Cardinality

from kumadp.relay.dialect import Sotw
from kumadp.relay.messages import CLUSTER, ENDPOINTS, LISTENER, Request, Response
from tests.bench.large_mesh import LargeMesh
from tests.bench.test_relay import WINDOW, Process
from tests.bench.test_start import processor_time
from tests.relay.test_downstream import Raw
from tests.support.poll import poll_async
from tests.support.process_memory import pss
from tests.support.relay_stage import NODE, RelayStage, stage
from tests.support.xds.journal import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(900)]

MESHES = tuple(int(size) for size in os.environ.get("KUMADP_BENCH_MESHES", "1000,5000").split(","))
ROUNDS = 5
MIB, MB = 1 << 20, 1e6
TYPES = (CLUSTER, ENDPOINTS, LISTENER)
# Seconds after which the relay has done what comes after an answer.
QUIET = 0.5
PROCESSOR, STALL = "relay's processor time, ms", "loop stalled, ms"
# A figure that grows with the square would have a ratio of 25.
MOST_GROWTH = 9.0
CHANGES = {
    "a cluster and its endpoints": (CLUSTER, ENDPOINTS),
    "a listener": (LISTENER,),
    "endpoints of a service": (ENDPOINTS,),
    "everything again, unchanged": (),
}


@dataclass
class Client:
    """An Envoy that does nothing but acknowledge."""

    stream: Any
    endpoints: tuple[str, ...]
    last: dict[str, Response] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    received: int = 0
    arrived: float = 0.0

    async def run(self) -> None:
        """Take responses until cancelled."""
        await self._send(CLUSTER)
        while True:
            data = await self.stream.recv_message()
            self.arrived, self.received = time.monotonic(), self.received + len(data)
            response = await asyncio.to_thread(Response.parse, data)
            self.last[response.type_url] = response
            await self._send(response.type_url, response.version, response.nonce)
            if response.type_url == CLUSTER and LISTENER not in self.names:
                self.names |= {LISTENER: (), ENDPOINTS: self.endpoints}
                await self._send(ENDPOINTS)
                await self._send(LISTENER)

    async def _send(self, type_url: str, version: str = "", nonce: str = "") -> None:
        await self.stream.send_message(
            Request(type_url, version, names=self.names.get(type_url, ()), nonce=nonce).encode()
        )


def peak(pid: int) -> float:
    """The most that a process has held since `forget_peak` (RSS, MiB; proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def forget_peak(pid: int) -> None:
    """Have `peak` begin again (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


Figures = dict[str, list[float]]


def answered(at: RelayStage, since: float, types: frozenset[str]) -> bool:
    """Return whether responses of these types were sent since then, and all are acknowledged."""
    responses = at.plane.journal.responses(since=since)
    acks = {request.nonce for request in at.plane.journal.requests(since=since) if request.kind is Kind.ACK}
    return types <= {response.type_url for response in responses} and all(one.nonce in acks for one in responses)


async def change(
    at: RelayStage, process: Process, client: Client, make: Callable[[], None], types: tuple[str, ...]
) -> dict[str, float]:
    """Make a change, and return what it cost once it is acknowledged; ``types``: what the control plane sends."""
    process.figures()
    before, received, since = processor_time(process.pid), client.received, time.monotonic()
    rss = psutil.Process(process.pid).memory_info().rss / MIB
    forget_peak(process.pid)
    await asyncio.to_thread(make)
    expected = frozenset(types or TYPES)

    async def done() -> bool:
        return answered(at, since, expected)

    await poll_async(done, what="the answers to a change", deadline=180)
    # The relay gives memory back.
    await asyncio.sleep(QUIET)
    sent = at.plane.journal.responses(since=since)[0].at
    cost = {
        PROCESSOR: (processor_time(process.pid) - before) * 1000,
        STALL: process.figures()["lag"] * 1000,
        "to Envoy, KB": (client.received - received) / 1000,
        "more memory at its peak, MiB": peak(process.pid) - rss,
    }
    if client.received > received:
        cost["from the control plane to Envoy, ms"] = (client.arrived - sent) * 1000
    return cost


async def measure(
    at: RelayStage, process: Process, large: LargeMesh, base: float, *, delta: bool
) -> dict[str, Figures]:
    """All figures of one mesh, by change; ``base`` is the memory of a process without a relay (MiB)."""
    result: dict[str, Figures] = {}
    windows = Configuration(http2_connection_window_size=WINDOW, http2_stream_window_size=WINDOW)
    async with Channel(path=str(at.path), codec=Raw(), config=windows) as channel:
        stream: Any = channel.request(Sotw.method, Cardinality.STREAM_STREAM, bytes, bytes)
        async with stream:
            client = Client(stream, tuple(at.plane.mesh(NODE).encoded({})[ENDPOINTS]))
            running: list[asyncio.Task[None]] = []

            async def complete() -> bool:
                return all(kind in client.last and len(client.last[kind].by_name) >= large.services for kind in TYPES)

            def begin() -> None:
                loop.call_soon_threadsafe(lambda: running.append(asyncio.ensure_future(client.run())))

            renew = functools.partial(at.plane.renew_versions, NODE)
            loop = asyncio.get_running_loop()
            first = await change(at, process, client, begin, TYPES)
            assert all(len(client.last[kind].by_name) >= large.services for kind in TYPES)
            first["memory held, MiB"] = pss(process.pid) - base
            result["the first time"] = {what: [figure] for what, figure in first.items()}
            for what, types in CHANGES.items():
                if delta and not types:
                    # Nothing is sent.
                    continue
                make = functools.partial(large.change, *types) if types else renew
                costs = [await change(at, process, client, make, types) for _ in range(ROUNDS)]
                result[what] = {of: [cost[of] for cost in costs if of in cost] for of in costs[0]}
            result["in the end"] = {"memory held, MiB": [pss(process.pid) - base]}
            running[0].cancel()
            await stream.cancel()
    return result


def growth(table: list[tuple[str, str, str]], small: dict[str, Figures], large: dict[str, Figures]) -> list[float]:
    """Note the medians of both meshes; return the ratios of processor times."""
    ratios = []
    for what, figures in small.items():
        table.append((what, "", ""))
        for of, values in figures.items():
            few, many = statistics.median(values), statistics.median(large[what].get(of) or [0.0])
            ratio = many / few if few > 0 else 0.0
            table.append((f"  {of}", f"{ratio:.1f} x", f"{few:.1f} -> {many:.1f}"))
            if of == PROCESSOR:
                ratios.append(ratio)
    return ratios


def figures_of(folder: Path, services: int, *, delta: bool, lag: bool) -> dict[str, Figures]:
    """Figures of a relay. Measuring the ``lag`` of its loop takes processor time."""
    folder.mkdir()
    options = (*(("--delta",) if delta else ()), *(() if lag else ("--without-lag",)))
    with stage(folder, version="3.0" if delta else "2.14.3") as at:
        at.plane.faults.linger = 0.0
        large = LargeMesh(at.plane.mesh(NODE), services)
        without = Process(at, "uvloop", "--without")
        base = pss(without.pid)
        without.close()
        process = Process(at, "uvloop", *options)
        try:
            return asyncio.run(measure(at, process, large, base, delta=delta))
        finally:
            process.close()


@pytest.mark.parametrize("delta", [False, True], ids=["SOTW", "delta"])
def test_growth(tmp_path: Path, table: list[tuple[str, str, str]], delta: bool) -> None:
    results = []
    for services in MESHES:
        figures = figures_of(tmp_path / f"{services}", services, delta=delta, lag=False)
        with_lag = figures_of(tmp_path / f"{services}-lag", services, delta=delta, lag=True)
        for what, values in figures.items():
            if STALL in values:
                values[STALL] = with_lag[what][STALL]
        results.append(figures)
    table.append((f"{'delta' if delta else 'SOTW'}: {MESHES[0]} -> {MESHES[1]} services", "", ""))
    ratios = growth(table, *results)
    assert max(ratios) < MOST_GROWTH
