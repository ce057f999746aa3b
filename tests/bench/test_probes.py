"""What a probe through the application probe proxy costs, beside kuma-dp (KUMADP_BENCH_PEER) in the same run.

A probe as kubelet's: a new connection to the proxy, which opens one to the application. The application and the
kubelets are processes of their own.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench.figures import ROUNDS
from tests.bench.sides import in_turn
from tests.bench.test_mesh import environment_of
from tests.bench.test_start import note, processor_time
from tests.support.daemon import Ports, get, is_listening
from tests.support.kuma_control_plane import control_plane
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.figures import Figures
    from tests.bench.sides import Side
    from tests.support.kuma_control_plane import ControlPlaneFiles

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.kuma_cp, pytest.mark.timeout(900), pytest.mark.goals]

SECONDS = 3
CONCURRENT = (1, 16)
TRAFFIC = (sys.executable, "-m", "tests.bench.probe_traffic")


@dataclass
class Measured:
    """Rounds of one program at one number of concurrent probes: processor time in ms, p50 and p99 in ms, probes/s."""

    cpu: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


def probe(measured: Measured, pid: int, port: int, app_port: int, concurrent: int) -> None:
    """Send probes for `SECONDS`; none may fail."""
    since = processor_time(pid)
    command = [*TRAFFIC, "probe", str(port), f"/{app_port}/healthz", str(concurrent), str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS + 60)
    used, result = processor_time(pid) - since, json.loads(done.stdout)
    assert not result["failed"], result
    measured.cpu.append(used / result["count"] * 1000)
    measured.p50.append(result["p50"])
    measured.p99.append(result["p99"])
    measured.rate.append(result["rate"])


@contextlib.contextmanager
def probed_application() -> Iterator[int]:
    """An application that is well; yields its port."""
    port = free_port()
    with subprocess.Popen([*TRAFFIC, "serve", str(port)]) as process:
        try:
            poll(lambda: is_listening(port), what="the application")
            yield port
        finally:
            process.kill()


@contextlib.contextmanager
def probe_proxy(
    side: Side, folder: Path, plane: ControlPlaneFiles, name: str, app_port: int
) -> Iterator[tuple[int, int]]:
    """A data plane in front of the application: its process, and the port of its probe proxy."""
    ports, port = Ports.take(), free_port()
    file = folder / "dp.json"
    file.write_text(json.dumps(plane.real.suit(dataplane(name, "probed", ports, app_port, probes=False))))
    with (folder / "log").open("wb") as out:
        process = subprocess.Popen(
            [side.command, "run", *plane.arguments, f"--dataplane-file={file}"],
            env={
                **environment_of(folder, ports, ours=side.is_ours),
                "KUMA_APPLICATION_PROBE_PROXY_PORT": str(port),
            },
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )
        try:
            poll(lambda: get(ports.inbound)[0] == 200, what=f"traffic by {side.name}", deadline=60)
            poll(lambda: get(port, f"/{app_port}/")[0] == 200, what=f"a probe by {side.name}")
            yield process.pid, port
        finally:
            process.terminate()
            process.wait(40)


def test_probes(tmp_path: Path, figures: Figures, table: list[tuple[str, str, str]]) -> None:
    measured: dict[tuple[Side, int], Measured] = {}
    with control_plane(tmp_path / "cp") as plane, probed_application() as app_port:
        for number, side in in_turn(ROUNDS):
            # A short path: the sockets of kuma-dp must fit into 98 bytes.
            with (
                tempfile.TemporaryDirectory(prefix="b") as folder,
                probe_proxy(side, Path(folder), plane, f"{side.key}-{number}", app_port) as (pid, port),
            ):
                # The first probes compile expressions and import what is needed.
                probe(Measured(), pid, port, app_port, 4)
                for concurrent in CONCURRENT:
                    probe(measured.setdefault((side, concurrent), Measured()), pid, port, app_port, concurrent)
    for (side, concurrent), rounds in measured.items():
        who = f"{side.name}, {concurrent} at a time"
        figures.add(f"probe.cpu_{concurrent}", side.key, *rounds.cpu)
        if concurrent > 1:
            figures.add(f"probe.p99_{concurrent}", side.key, *rounds.p99)
            figures.add(f"probe.rate_{concurrent}", side.key, *rounds.rate)
        note(table, f"{who}: p50", "ms", rounds.p50)
        note(table, f"{who}: p99", "ms", rounds.p99)
        note(table, f"{who}: probes", "/s", rounds.rate)
