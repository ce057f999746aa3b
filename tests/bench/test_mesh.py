"""In a real mesh (KUMA_CP): start to first answer and memory, beside a kuma-dp (KUMADP_BENCH_PEER) in the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.bench.test_start import note, pss, rest
from tests.support.daemon import Ports, get, workload
from tests.support.kuma_control_plane import control_plane
from tests.support.kuma_resources import dataplane
from tests.support.needs import need_envoy
from tests.support.poll import poll

if TYPE_CHECKING:
    from tests.support.kuma_control_plane import ControlPlaneFiles

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.kuma_cp, pytest.mark.timeout(900)]

ROUNDS = 4


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


def measure(
    program: list[str], folder: Path, plane: ControlPlaneFiles, service: str
) -> tuple[float, float, float, float]:
    """Seconds from exec to the first answer through the mesh and to READY, 0 for kuma-dp.

    Then PSS at rest in MiB, of the program and of its Envoy.
    """
    ports, ours = Ports.take(), "kumadp" in program
    with workload(service) as app, (folder / "log").open("wb") as out:
        file = folder / "dp.json"
        file.write_text(json.dumps(plane.real.suit(dataplane(f"{service}-dp", service, ports, app.port, probes=False))))
        started = time.monotonic()
        process = subprocess.Popen(
            [*program, "run", *plane.arguments, f"--dataplane-file={file}"],
            env=environment_of(folder, ports, ours=ours),
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )
        try:
            poll(lambda: get(ports.outbound) == (200, service), what=f"traffic by {program[-1]}", deadline=60)
            took, ready = time.monotonic() - started, 0.0
            if ours:
                poll(lambda: get(ports.readiness, "/ready") == (200, "READY"), what="READY", deadline=60)
                ready = time.monotonic() - started
            rest()
            children = psutil.Process(process.pid).children()
            envoy = next(child for child in children if child.name() == "envoy")
            return took, ready, pss(process.pid), pss(envoy.pid)
        finally:
            process.terminate()
            process.wait(40)


def test_start_to_first_answer_through_the_mesh(tmp_path: Path, table: list[tuple[str, str, str]]) -> None:
    programs = {"kumadp": [sys.executable, "-m", "kumadp"]}
    if peer := os.environ.get("KUMADP_BENCH_PEER"):
        programs[Path(peer).name] = [peer]
    with control_plane(tmp_path / "cp") as plane:
        for name, program in programs.items():
            figures = []
            for count in range(ROUNDS):
                # A short path: the sockets of kuma-dp must fit into 98 bytes.
                with tempfile.TemporaryDirectory(prefix="b") as folder:
                    figures.append(measure(program, Path(folder), plane, f"{name.replace('.', '-')}-{count}"))
            figures = figures[1:]
            note(table, f"{name}: exec to first answer through the mesh", "s", [took for took, *_ in figures])
            if name == "kumadp":
                note(table, f"{name}: exec to READY", "s", [ready for _, ready, *_ in figures])
            note(table, f"{name} in the mesh: PSS", "MiB", [own for *_, own, _ in figures])
            note(table, f"{name}: PSS of its Envoy", "MiB", [envoy for *_, envoy in figures])
