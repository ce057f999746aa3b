"""Start and outage with 1,000 services, with the tags of stats as the control plane sends them and rewritten.

The test control plane gives the bootstrap of Kuma 2.14; traffic goes through the mesh to the own inbound.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.bench.large_mesh import LargeMesh
from tests.bench.test_start import note, processor_time
from tests.support.daemon import workload
from tests.support.poll import poll
from tests.support.rig import NODE, Rig
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(900)]

ROUNDS = 3
LONGEST = 180.0
MODES = ("as-sent", "fast")


def envoy_of(daemon: Daemon) -> psutil.Process:
    """The Envoy of a kumadp."""
    return next(child for child in psutil.Process(daemon.pid).children() if child.name() == "envoy")


def measure(rig: Rig, mode: str) -> tuple[float, float, float, float]:
    """Seconds from exec to the first answer, and of the outage after Envoy is killed.

    Each with the processor time (seconds) of the Envoy that gave the answer.
    """
    started = time.monotonic()
    with rig.run(f"--stat-tags={mode}") as daemon:
        poll(rig.serves, what="the first answer", deadline=LONGEST)
        first, first_cpu = time.monotonic() - started, processor_time(envoy_of(daemon).pid)
        poll(lambda: rig.settled(daemon), what="everything acknowledged", deadline=LONGEST)
        killed, since = envoy_of(daemon), time.monotonic()
        killed.send_signal(signal.SIGKILL)
        psutil.wait_procs([killed], timeout=10)
        poll(rig.serves, what="an answer after the outage", deadline=LONGEST)
        return first, first_cpu, time.monotonic() - since, processor_time(envoy_of(daemon).pid)


def test_a_thousand_services(tmp_path: Path, table: list[tuple[str, str, str]]) -> None:
    with XdsControlPlane() as plane, workload("backend") as app:
        rig = Rig(tmp_path, plane, app)
        mesh = plane.mesh(NODE)
        mesh.inbound(rig.ports.inbound, app.port)
        mesh.outbound(rig.ports.outbound, app.name, http2=True)
        LargeMesh(mesh)
        figures = [(mode, measure(rig, mode)) for _ in range(ROUNDS) for mode in MODES]
        for mode in MODES:
            rounds = list(zip(*(values for of, values in figures if of == mode), strict=True))
            for what, values in zip(("first answer", "  Envoy's CPU", "outage", "  Envoy's CPU"), rounds, strict=True):
                note(table, f"{mode}: {what}", "s", list(values))
