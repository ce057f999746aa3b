"""What the relay costs: memory beside the rest of kumadp, processor time and a stalled loop while 5 MB pass."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler
from grpclib.server import Server

from kumadp.relay.dialect import Sotw
from kumadp.relay.messages import CLUSTER, Request, Response, encode_response
from kumadp.relay.protobuf import field_bytes, field_text
from tests.bench.test_start import note, rest
from tests.relay.test_downstream import Raw
from tests.support.poll import poll, poll_async
from tests.support.process_memory import pss
from tests.support.relay_stage import NODE, RelayStage, stage
from tests.support.xds.resources import static_cluster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(600)]

ROUNDS = 5
MB = 1e6
WINDOW = 1 << 28
# What the relay may cost: memory beside the rest (MiB), and a stalled loop while a large update passes (ms).
MOST_ADDED = 6.0
LONGEST_STALL = 20.0


def judge(table: list[tuple[str, str, str]], what: str, unit: str, values: list[float], limit: float) -> None:
    """Note the figures, and whether their median is within the limit. Stalls count the turns of others on the host."""
    note(table, what, unit, values)
    verdict = "ok" if statistics.median(values) <= limit else "NOT OK"
    table.append((f"    at most {limit:g} {unit}", verdict, f"load of the host {os.getloadavg()[0]:.1f}"))


class Process:
    """A `relay_process`."""

    def __init__(self, at: RelayStage, loop: str, *options: str) -> None:
        node, ca = at.folder / "node.json", at.folder / "ca.pem"
        node.write_text(json.dumps(at.bootstrap["node"]))
        at.plane.write_ca(ca)
        arguments = (str(at.path), str(node), str(at.plane.xds_port), str(ca), loop, *options)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.relay_process", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.figures()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pss(self) -> float:
        return pss(self.pid)

    def figures(self) -> dict[str, float]:
        """Since the last time: ``lag``; altogether: ``cpu``, seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        figures: dict[str, float] = json.loads(self._process.stdout.readline())
        return figures

    def close(self) -> None:
        self._process.communicate(timeout=10)


async def pass_large(at: RelayStage, process: Process, clusters: int, padding: int) -> list[dict[str, float]]:
    """Updates of many clusters, taken by a client that reads as fast as it can."""
    windows = Configuration(http2_connection_window_size=WINDOW, http2_stream_window_size=WINDOW)
    passes = []
    mesh = at.plane.mesh(NODE)
    async with Channel(path=str(at.path), codec=Raw(), config=windows) as channel:
        stream: Any = channel.request(Sotw.method, Cardinality.STREAM_STREAM, bytes, bytes)
        async with stream:
            await stream.send_message(Request(CLUSTER).encode())
            for number in range(-1, ROUNDS):
                if number >= 0:
                    names = [f"cluster-{index}-{'x' * padding}" for index in range(clusters)]
                    mesh.trees[CLUSTER] = {name: static_cluster(name, "127.0.0.1", 1 + number) for name in names}
                    before = process.figures()["cpu"]
                    applied = asyncio.get_running_loop().run_in_executor(None, mesh.apply)
                data = await stream.recv_message()
                response = Response.parse(data)
                arrived = time.monotonic()
                await stream.send_message(Request(CLUSTER, response.version, nonce=response.nonce).encode())
                if number >= 0:
                    await applied
                    sent = [
                        sent_response.at
                        for sent_response in at.plane.journal.responses(CLUSTER)
                        if sent_response.version == response.version
                    ]
                    await asyncio.sleep(0.3)
                    now = process.figures()
                    took = {"size": len(data), "passing": arrived - sent[-1], "cpu": now["cpu"] - before}
                    passes.append({**took, "lag": now["lag"]})
            await stream.cancel()
    return passes


class Sender:
    """A control plane that sends what it is given."""

    def __init__(self) -> None:
        self.responses: asyncio.Queue[bytes] = asyncio.Queue()
        self.authority = trustme.CA()

    def __mapping__(self) -> dict[str, Handler]:
        return {Sotw.method: Handler(self._serve, Cardinality.STREAM_STREAM, bytes, bytes)}

    async def _serve(self, stream: Any) -> None:
        async def read() -> None:
            async for _ in stream:
                pass

        reading = asyncio.create_task(read())
        try:
            while True:
                await stream.send_message(await self.responses.get())
        finally:
            reading.cancel()

    async def start(self) -> tuple[Server, int]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("localhost").configure_cert(context)
        context.set_alpn_protocols(["h2"])
        server = Server([self], codec=Raw())
        sock = socket.create_server(("127.0.0.1", 0))
        await server.start(sock=sock, ssl=context)
        return server, int(sock.getsockname()[1])


def clusters_of(megabytes: int, version: str) -> bytes:
    """A response of so many clusters of 60 kB."""
    count = max(1, megabytes * 1_000_000 // 60_000)
    padding = field_bytes(99, b"x" * (60_000 if megabytes else 10))
    resources = [field_text(1, CLUSTER) + field_bytes(2, field_text(1, f"c{at}") + padding) for at in range(count)]
    return encode_response(CLUSTER, version, resources, version)


async def memory_of(folder: Path, loop: str, megabytes: int) -> tuple[float, float]:
    """What a large response adds (MiB) while it is held, and after a small one took its place."""
    sender = Sender()
    server, port = await sender.start()
    ca, node, path = folder / "ca.pem", folder / "node.json", Path(tempfile.mkdtemp(prefix="k")) / "s"
    ca.write_bytes(sender.authority.cert_pem.bytes())
    node.write_text('{"id": "a", "cluster": "b"}')
    arguments = [sys.executable, "-m", "tests.bench.relay_process", *map(str, (path, node, port, ca, loop))]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: ASYNC220
    windows = Configuration(http2_connection_window_size=WINDOW, http2_stream_window_size=WINDOW)
    sizes = []
    try:
        await poll_async(_exists(path), what="the relay's socket")
        async with Channel(path=str(path), codec=Raw(), config=windows) as channel:
            stream: Any = channel.request(Sotw.method, Cardinality.STREAM_STREAM, bytes, bytes)
            async with stream:
                await stream.send_message(Request(CLUSTER).encode())
                for version, size in enumerate((0, megabytes, 0)):
                    sender.responses.put_nowait(clusters_of(size, str(version)))
                    response = Response.parse(await stream.recv_message())
                    await stream.send_message(Request(CLUSTER, response.version, nonce=response.nonce).encode())
                    del response
                    # Past the moment when memory is given back.
                    await asyncio.sleep(3)
                    sizes.append(pss(process.pid))
                await stream.cancel()
    finally:
        process.communicate(timeout=10)
        server.close()
    return sizes[1] - sizes[0], sizes[2] - sizes[0]


def _exists(path: Path) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return path.exists()  # noqa: ASYNC240

    return look


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_memory_is_given_back(tmp_path: Path, loop: str, table: list[tuple[str, str, str]]) -> None:
    megabytes = 100
    held, remaining = asyncio.run(memory_of(tmp_path, loop, megabytes))
    judge(table, f"{loop}: {megabytes} MB held", "MiB", [held], 1.3 * megabytes)
    judge(table, f"{loop}: after a small one took their place", "MiB", [remaining], 15.0)
    assert held <= 1.3 * megabytes
    assert remaining <= 15.0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_memory_and_large_updates(tmp_path: Path, loop: str, table: list[tuple[str, str, str]]) -> None:
    added, imported, live = [], [], []
    with stage(tmp_path) as at:
        at.plane.faults.linger = 0.0
        for _ in range(ROUNDS):
            without = Process(at, loop, "--without")
            rest()
            base = without.pss
            without.close()
            process = Process(at, loop)
            started = time.monotonic()
            envoy = at.envoy()
            envoy.wait_live()
            live.append(time.monotonic() - started)
            at.wait_traffic()
            rest()
            added.append(process.pss - base)
            imported.append(process.figures()["imported"] * 1000)
            envoy.kill()
            process.close()
            poll(lambda: at.plane.streams() == [], what="the end of the stream at the control plane")
        judge(table, f"{loop}: memory added (PSS)", "MiB", added, MOST_ADDED)
        note(table, f"{loop}: import", "ms", imported)
        note(table, f"{loop}: Envoy started to LIVE", "s", live)
        process = Process(at, loop)
        for clusters, padding in ((1200, 1300), (4000, 360)):
            passed = asyncio.run(pass_large(at, process, clusters, padding))
            what = f"{loop}: {passed[0]['size'] / MB:.1f} MB, {clusters} clusters"
            judge(table, f"{what}: loop stalled", "ms", [figures["lag"] * 1000 for figures in passed], LONGEST_STALL)
            note(table, f"{what}: passed on after", "ms", [figures["passing"] * 1000 for figures in passed])
            note(
                table,
                f"{what}: processor",
                "ms/MB",
                [figures["cpu"] * 1000 / figures["size"] * MB for figures in passed],
            )
        note(table, f"{loop}: memory after them (PSS)", "MiB", [process.pss])
        process.close()
