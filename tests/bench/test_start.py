"""Start to first answer, and memory at rest: figures, not assertions. KUMADP_BENCH_PEER adds rows for a kuma-dp.

The peer has no standalone mode, so its rows stop at what it does by itself: the time from exec to its first bootstrap
request, and its memory while nobody answers; kumadp is measured the same way beside it. A control plane that is
connected to is enough: of kumadp this is the connection on which the request is sent.
"""

from __future__ import annotations

import os
import select
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench.figures import ROUNDS
from tests.bench.sides import in_turn
from tests.support.daemon import Ports, get, run_kumadp, workload, write_mesh
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.process_memory import pss

if TYPE_CHECKING:
    from tests.bench.figures import Figures
    from tests.bench.sides import Side

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(600)]

# The first round reads the program from disk; it does not count.
WARM_UP = 1
REST_SECONDS = 3.0


def note(table: list[tuple[str, str, str]], what: str, unit: str, values: list[float]) -> None:
    table.append((what, f"{statistics.median(values):.2f} {unit}", " ".join(f"{value:.2f}" for value in values)))


def wait_for_answer(port: int) -> None:
    """Send requests until it answers."""
    poll(lambda: get(port)[0] == 200, what="an answer through the inbound")


def rest() -> None:
    """Let a process come to rest: that is not visible from outside."""
    time.sleep(REST_SECONDS)


def processor_time(pid: int) -> float:
    """Seconds on a processor, all threads; schedstat counts nanoseconds where cpu_times has ticks of 10 ms."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def test_standalone_start_to_first_answer_and_memory(tmp_path: Path, table: list[tuple[str, str, str]]) -> None:
    first, ready, memory, processor = [], [], [], []
    for round_number in range(-WARM_UP, ROUNDS):
        folder = tmp_path / str(round_number)
        folder.mkdir()
        ports = Ports.take()
        with workload("web") as app, workload("backend") as backend:
            mesh = write_mesh(folder / "mesh", ports, app.port, backend.port)
            started = time.monotonic()
            arguments = ("--standalone", str(mesh), "--name", "web", "--drain-time", "1s")
            with run_kumadp(folder, ports, *arguments, dns=True) as daemon:
                wait_for_answer(ports.inbound)
                first.append(time.monotonic() - started)
                daemon.wait_ready()
                ready.append(time.monotonic() - started)
                before = processor_time(daemon.pid)
                rest()
                processor.append((processor_time(daemon.pid) - before) / REST_SECONDS * 1000)
                memory.append(pss(daemon.pid))
    first, ready, memory, processor = first[WARM_UP:], ready[WARM_UP:], memory[WARM_UP:], processor[WARM_UP:]
    note(table, "kumadp run --standalone: exec to first answer by inbound", "s", first)
    note(table, "kumadp run --standalone: exec to READY", "s", ready)
    note(table, "kumadp at rest, without Envoy: PSS", "MiB", memory)
    note(table, "kumadp at rest: processor time", "ms/s", processor)


def start_to_request(side: Side, folder: Path) -> tuple[float, float]:
    """Seconds from exec to the first connection to the control plane; PSS in MiB while it gets no answer."""
    with socket.create_server(("127.0.0.1", 0)) as control_plane:
        peer = not side.is_ours
        # Nothing else on this host may hold a configured port: kumadp takes free ones by itself.
        ports = ("READINESS_PORT", "DNS_CORE_DNS_PORT", "DNS_ENVOY_DNS_PORT", "DNS_PROMETHEUS_PORT")
        environment = {**os.environ, **{f"KUMA_{name}": str(free_port()) if peer else "0" for name in ports}}
        if peer:
            # kuma-dp's CoreDNS needs a plugin that common builds lack.
            environment["KUMA_DNS_ENABLED"] = "false"
        address = f"http://127.0.0.1:{control_plane.getsockname()[1]}"
        arguments = [
            "run",
            f"--cp-address={address}",
            "--name=web-1",
            "--mesh=default",
            f"--binary-path={need_envoy()}",
        ]
        log = folder / "log"
        started = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [side.command, *arguments],
                # A kumadp of the same name may run on this host.
                env={**environment, **dict.fromkeys(("TMPDIR", "RUNTIME_DIRECTORY", "STATE_DIRECTORY"), str(folder))},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        try:
            while not select.select([control_plane], [], [], 0.2)[0]:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < started + 60, log.read_text()
            took = time.monotonic() - started
            connection, _ = control_plane.accept()
            with connection:
                rest()
                return took, pss(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.mark.goals
def test_start_to_bootstrap_request(figures: Figures, table: list[tuple[str, str, str]]) -> None:
    memory: dict[str, list[float]] = {}
    for number, side in in_turn(WARM_UP + ROUNDS):
        with tempfile.TemporaryDirectory(prefix="b") as folder:
            took, waiting = start_to_request(side, Path(folder))
        if number >= WARM_UP:
            figures.add("start.bootstrap_request", side.key, took)
            memory.setdefault(side.name, []).append(waiting)
    for name, values in memory.items():
        note(table, f"{name} waiting for the control plane: PSS", "MiB", values)
