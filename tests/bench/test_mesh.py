"""In a real mesh (KUMA_CP): start to first answer and memory, beside a kuma-dp (KUMADP_BENCH_PEER) in the same run."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.bench.figures import ROUNDS
from tests.bench.sides import in_turn
from tests.bench.test_start import note, processor_time, rest
from tests.support.daemon import Ports, get, workload
from tests.support.kuma_control_plane import control_plane
from tests.support.kuma_resources import dataplane
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.process_memory import pss

if TYPE_CHECKING:
    from tests.bench.figures import Figures
    from tests.bench.sides import Side
    from tests.support.kuma_control_plane import ControlPlaneFiles

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.kuma_cp, pytest.mark.timeout(900), pytest.mark.goals]


def environment_of(folder: Path, ports: Ports, *, ours: bool = False) -> dict[str, str]:
    """The variables of a program: the defaults, but for ports."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KUMA")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return {
        **environment,
        "TMPDIR": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "KUMA_READINESS_PORT": str(ports.readiness),
        "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": str(need_envoy()),
        "KUMA_DATAPLANE_DRAIN_TIME": "1s",
        "KUMA_DNS_CORE_DNS_PORT": str(ports.dns),
        "KUMA_DNS_ENVOY_DNS_PORT": str(ports.envoy_dns),
        # kuma-dp's CoreDNS needs a plugin that common builds lack.
        **({} if ours else {"KUMA_DNS_ENABLED": "false"}),
    }


@dataclass(frozen=True)
class Start:
    """Seconds from exec to the first answer and to READY (0 for kuma-dp), and the supervisor's until the answer.

    Then PSS at rest in MiB, of the program and of its Envoy.
    """

    answer: float
    cpu: float
    ready: float
    own: float
    envoy: float


def measure(side: Side, folder: Path, plane: ControlPlaneFiles, service: str) -> Start:
    """Start a program in the mesh, and end it."""
    ports = Ports.take()
    with workload(service) as app, (folder / "log").open("wb") as out:
        file = folder / "dp.json"
        file.write_text(json.dumps(plane.real.suit(dataplane(f"{service}-dp", service, ports, app.port, probes=False))))
        started = time.monotonic()
        process = subprocess.Popen(
            [side.command, "run", *plane.arguments, f"--dataplane-file={file}"],
            env=environment_of(folder, ports, ours=side.is_ours),
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )
        try:
            poll(lambda: get(ports.outbound) == (200, service), what=f"traffic by {side.name}", deadline=60)
            answer, ready, cpu = time.monotonic() - started, 0.0, processor_time(process.pid)
            if side.is_ours:
                poll(lambda: get(ports.readiness, "/ready") == (200, "READY"), what="READY", deadline=60)
                ready = time.monotonic() - started
            rest()
            children = psutil.Process(process.pid).children()
            envoy = next(child for child in children if child.name() == "envoy")
            return Start(answer, cpu, ready, pss(process.pid), pss(envoy.pid))
        finally:
            process.terminate()
            process.wait(40)


def test_start_to_first_answer_through_the_mesh(
    tmp_path: Path, figures: Figures, table: list[tuple[str, str, str]]
) -> None:
    starts: dict[Side, list[Start]] = {}
    with control_plane(tmp_path / "cp") as plane:
        # The first start of a program reads it from disk.
        for number, side in in_turn(1 + ROUNDS):
            # A short path: the sockets of kuma-dp must fit into 98 bytes.
            with tempfile.TemporaryDirectory(prefix="b") as folder:
                start = measure(side, Path(folder), plane, f"{side.name.replace('.', '-')}-{number}")
            if number:
                starts.setdefault(side, []).append(start)
    for side, of in starts.items():
        figures.add("start.first_answer", side.key, *(start.answer for start in of))
        figures.add("start.cpu", side.key, *(start.cpu for start in of))
        figures.add("start.pss", side.key, *(start.own for start in of))
        if side.is_ours:
            figures.add("start.ready_after", side.key, *(start.ready - start.answer for start in of))
        note(table, f"{side.name}: PSS of its Envoy", "MiB", [start.envoy for start in of])
