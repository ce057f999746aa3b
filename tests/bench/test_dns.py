"""What an answer to a name of the mesh costs, and how long a large table stops the loop.

The embedded resolver, on one address and on all, beside CoreDNS's ``hosts``; with KUMA_CP and KUMADP_BENCH_PEER also
beside kuma-dp's embedded proxy, in the same mesh and the same run. dnsperf sends queries from its own processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import dns.exception
import dns.message
import dns.query
import pytest

from kumadp.dns.resolver.server import Resolver
from kumadp.dns.resolver.table import Table
from kumadp.resources.dynconf_bodies import DNS, DnsBody, decode
from tests.bench.figures import KUMADP, ROUNDS
from tests.bench.relay_process import Lag
from tests.bench.sides import in_turn
from tests.bench.test_mesh import environment_of
from tests.bench.test_start import note, processor_time
from tests.support.daemon import Ports, run_kumadp, workload, write_mesh
from tests.support.kuma_control_plane import control_plane
from tests.support.kuma_resources import dataplane
from tests.support.needs import need_coredns, need_program
from tests.support.poll import poll
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.figures import Figures
    from tests.bench.sides import Side
    from tests.support.kuma_control_plane import ControlPlaneFiles

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(900)]

TURNS = min(ROUNDS, 2)
SECONDS = 2
# As many as are answered without effort, where each wakes the server up.
STEADY = 5000
MANY = 50_000
NAME = "backend.mesh"


def answers(port: int, name: str = NAME) -> bool:
    try:
        response = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", port=port, timeout=1)
    except (OSError, dns.exception.Timeout):
        return False
    return bool(response.answer)


def dnsperf(port: int, names: list[str], *options: str) -> tuple[float, int, int]:
    """Answers each second, their number, and how many queries were lost."""
    # It goes through the queries again and again, so it has to be a file.
    with tempfile.NamedTemporaryFile("w", suffix=".queries") as queries:
        queries.write("".join(f"{name} A\n" for name in names))
        queries.flush()
        command = [need_program("dnsperf", "dnsperf"), "-s", "127.0.0.1", "-p", str(port), "-d", queries.name, *options]
        done = subprocess.run(
            [*command, "-l", str(SECONDS)], capture_output=True, text=True, check=True, timeout=SECONDS + 30
        )
    figures = [
        re.search(rf"{what}:\s+([0-9.]+)", done.stdout)
        for what in ("Queries per second", "Queries completed", "Queries lost")
    ]
    rate, completed, lost = (float(match[1]) if match else 0.0 for match in figures)
    assert completed, done.stdout + done.stderr
    return rate, int(completed), int(lost)


@dataclass
class Load:
    """Rounds of what a server does: thousands of answers each second, and processor time of an answer (us)."""

    rates: list[float] = field(default_factory=list)
    full: list[float] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)

    def run(self, pid: int, port: int, rounds: int = ROUNDS) -> None:
        """Measure a server that answers there: at full load, and at a steady rate. The first round does not count."""
        for number in range(rounds + 1):
            since = processor_time(pid)
            rate, completed, lost = dnsperf(port, [NAME], "-q", "64")
            full = (processor_time(pid) - since) / completed * 1e6
            assert lost <= completed / 1000
            since = processor_time(pid)
            _, completed, _ = dnsperf(port, [NAME], "-q", "64", "-Q", str(STEADY))
            if number:
                self.rates.append(rate / 1000)
                self.full.append(full)
                self.steady.append((processor_time(pid) - since) / completed * 1e6)

    def note(self, table: list[tuple[str, str, str]], who: str) -> None:
        """Add all rows."""
        note(table, f"{who}: answers", "k/s", self.rates)
        note(table, f"{who}: CPU of an answer, full load", "us", self.full)
        note(table, f"{who}: CPU of an answer, {STEADY}/s", "us", self.steady)


@pytest.mark.goals
def test_embedded_resolver_on_all_addresses(
    tmp_path: Path, figures: Figures, table: list[tuple[str, str, str]]
) -> None:
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        arguments = ("--standalone", str(mesh), "--name=web", "--dns-mode=embedded")
        with run_kumadp(tmp_path, ports, *arguments, dns=True) as daemon:
            daemon.wait_ready()
            load = Load()
            load.run(daemon.process.pid, ports.dns)
    load.note(table, "kumadp, 0.0.0.0")
    figures.add("dns.cpu_all", KUMADP, *load.full)


def test_coredns_hosts(tmp_path: Path, table: list[tuple[str, str, str]]) -> None:
    port = free_port()
    corefile = tmp_path / "Corefile"
    corefile.write_text(f".:{port} {{\n    bind 127.0.0.1\n    hosts {{\n        240.0.0.1 {NAME}\n    }}\n}}\n")
    command = [str(need_coredns()), "-conf", str(corefile), "-quiet"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            poll(lambda: answers(port), what="CoreDNS")
            load = Load()
            load.run(process.pid, port)
            load.note(table, "CoreDNS, hosts")
        finally:
            process.kill()


@contextlib.contextmanager
def in_the_mesh(side: Side, folder: Path, plane: ControlPlaneFiles, name: str) -> Iterator[tuple[int, int]]:
    """A data plane behind redirection, whose own proxy answers names: its process and the port."""
    ports = Ports.take()
    with workload("backend") as app, (folder / "log").open("wb") as out:
        resource = dataplane(name, "backend", ports, app.port, probes=False)
        networking = resource["networking"]
        del networking["outbound"]
        networking["transparentProxying"] = {"redirectPortInbound": free_port(), "redirectPortOutbound": free_port()}
        file = folder / "dp.json"
        file.write_text(json.dumps(plane.real.suit(resource)))
        environment = {
            **environment_of(folder, ports),
            "KUMA_DNS_ENABLED": "true",
            "KUMA_DNS_PROXY_PORT": str(ports.dns),
            "KUMA_DNS_ENVOY_DNS_PORT": str(ports.envoy_dns),
        }
        process = subprocess.Popen(
            [side.command, "run", *plane.arguments, f"--dataplane-file={file}"],
            env=environment,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )
        try:
            poll(lambda: answers(ports.dns), what=f"{NAME} by {side.name}", deadline=60)
            yield process.pid, ports.dns
        finally:
            process.terminate()
            process.wait(40)


@pytest.mark.kuma_cp
@pytest.mark.goals
def test_embedded_resolvers_in_the_mesh(tmp_path: Path, figures: Figures, table: list[tuple[str, str, str]]) -> None:
    loads: dict[Side, Load] = {}
    with control_plane(tmp_path / "cp") as plane:
        for number, side in in_turn(TURNS):
            # A short path: the sockets of kuma-dp must fit into 98 bytes.
            with (
                tempfile.TemporaryDirectory(prefix="b") as folder,
                in_the_mesh(side, Path(folder), plane, f"{side.key}-{number}") as (pid, port),
            ):
                loads.setdefault(side, Load()).run(pid, port, max(1, ROUNDS // TURNS))
    for side, load in loads.items():
        load.note(table, f"{side.name}, 127.0.0.1")
        figures.add("dns.cpu", side.key, *load.full)
        figures.add("dns.cpu_steady", side.key, *load.steady)
        if not side.is_ours:
            figures.add("dns.cpu_all", side.key, *load.full)


async def test_swap_of_a_large_table_under_load(table: list[tuple[str, str, str]]) -> None:
    """Names come as they do from a control plane: from JSON, as another table, which is put in the old one's place."""

    def body(last: int) -> bytes:
        records = [
            {"name": f"s{number}.mesh", "ips": [f"240.{number >> 8}.{number & 255}.{last}", f"fd00::{last}"]}
            for number in range(MANY)
        ]
        return json.dumps({"records": records, "ttl": 30}).encode()

    async def swap(table_body: bytes) -> None:
        dns = decode(DNS, table_body)
        assert isinstance(dns, DnsBody)
        table, old = Table(ttl=dns.ttl, suffixes=("mesh",)), resolver.table
        await table.fill((record.name, record.ips or ()) for record in dns.records or ())
        resolver.table = table
        await old.clear()

    port = free_port()
    lag = Lag()
    stalls, took, lost = [], [], []
    async with Resolver([("127.0.0.1", port)]) as resolver:
        await swap(body(0))
        watch = asyncio.create_task(lag.run())
        names = [f"s{number}.mesh" for number in range(0, MANY, 50)]
        for last in range(1, ROUNDS + 1):
            load = asyncio.create_task(asyncio.to_thread(dnsperf, port, names, "-q", "64", "-Q", str(STEADY)))
            await asyncio.sleep(SECONDS / 3)
            table_body = await asyncio.to_thread(body, last)
            await asyncio.sleep(0.2)
            lag.longest = 0.0
            since = time.monotonic()
            await swap(table_body)
            took.append(time.monotonic() - since)
            await asyncio.sleep(0.2)
            stalls.append(lag.longest * 1000)
            lost.append(float((await load)[2]))
        watch.cancel()
    note(table, f"{MANY} names swapped, {STEADY} queries/s: longest stall", "ms", stalls)
    note(table, f"{MANY} names swapped: time it takes", "s", took)
    note(table, f"{MANY} names swapped: queries lost", "", lost)
