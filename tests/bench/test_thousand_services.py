"""A real mesh (KUMA_CP) of 1,000 services: start, memory, rest, a reload, and the outage after Envoy is killed.

The same for a kuma-dp (KUMADP_BENCH_PEER) in the same run, but for the reload, which it does not have; it ends with its
Envoy, and is started again at once. Requests go through the mesh to the own inbound.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench.figures import ROUNDS
from tests.bench.sides import in_turn
from tests.bench.test_failures import Service, Stream, kill_envoy, stream_during
from tests.bench.test_mesh import environment_of
from tests.bench.test_policy import fill
from tests.bench.test_start import processor_time
from tests.support.daemon import Ports, get, workload
from tests.support.kuma_control_plane import control_plane
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll
from tests.support.process_memory import pss

if TYPE_CHECKING:
    from tests.bench.figures import Figures
    from tests.bench.sides import Side
    from tests.support.kuma_control_plane import ControlPlaneFiles

pytestmark = [
    *(pytest.mark.bench, pytest.mark.goals, pytest.mark.process, pytest.mark.kuma_cp),
    pytest.mark.timeout(3600),
]

# A kuma-dp needs more than a minute for each.
TURNS = min(ROUNDS, 2)
LONGEST = 240.0
# On a busy host a kuma-dp has taken five minutes.
FIRST_ANSWER = 600.0
FIRST = 8.0
# Envoy is at rest if it uses less processor time (seconds) than this in a second.
RESTING = 0.06


def measure(side: Side, folder: Path, files: ControlPlaneFiles, figures: Figures, name: str) -> None:
    """Measure one program from exec to its end."""
    ports = Ports.take()
    with workload("backend") as app:
        file = folder / "dp.json"
        file.write_text(json.dumps(fill(files.real, dataplane(name, "backend", ports, app.port, probes=False))))
        started = time.monotonic()
        service = Service(side, folder, files, file, ports)
        try:
            poll(lambda: get(ports.outbound) == (200, "backend"), what=f"traffic by {side.name}", deadline=FIRST_ANSWER)
            figures.add("thousand.first_answer", side.key, time.monotonic() - started)
            before = processor_time(service.process.pid)
            time.sleep(FIRST)
            figures.add("thousand.rest", side.key, (processor_time(service.process.pid) - before) / FIRST * 1000)
            figures.add("thousand.pss", side.key, pss(service.process.pid))
            settle(service)
            figures.add("thousand.envoy_rss", side.key, service.envoys()[0].memory_info().rss / 1e6)
            if side.is_ours:
                failed, lost = reload(side, folder, ports)
                figures.add("thousand.reload_failed", side.key, float(failed))
                figures.add("thousand.reload_lost", side.key, float(lost))
                settle(service)
            figures.add("thousand.outage", side.key, outage(service, files, ports))
        finally:
            service.close()


def settle(service: Service) -> None:
    """Wait until the Envoys have nothing to do any more."""

    def used() -> float:
        seconds = 0.0
        for envoy in service.envoys():
            with contextlib.suppress(OSError):
                seconds += processor_time(envoy.pid)
        return seconds

    def rests() -> bool:
        before = used()
        time.sleep(1.0)
        return used() - before < RESTING

    poll(rests, what="Envoy at rest", deadline=LONGEST)


def reload(side: Side, folder: Path, ports: Ports) -> tuple[bool, int]:
    """Reload under load; return whether that failed, and the number of requests lost."""
    stream = Stream(ports.outbound)
    with stream.flowing():
        done = subprocess.run(
            [side.command, "reload"],
            env=environment_of(folder, ports, ours=True),
            check=False,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
        # The old Envoy drains for a second.
        time.sleep(5.0)
    if done.returncode:
        print(done.stdout, done.stderr)  # noqa: T201 - why the row shows a failure
    return done.returncode != 0, len(stream.lost)


def outage(service: Service, files: ControlPlaneFiles, ports: Ports) -> float:
    """Kill Envoy; return the seconds without an answer, cut at `LONGEST`."""
    return stream_during(lambda: kill_envoy(service, files), ports, LONGEST).outage


def test_a_thousand_services(tmp_path: Path, figures: Figures) -> None:
    for number, side in in_turn(TURNS):
        # Its own control plane: the services of another one would still be updated. A short path: the sockets of
        # kuma-dp must fit into 98 bytes.
        with (
            control_plane(tmp_path / f"{side.key}-{number}") as files,
            tempfile.TemporaryDirectory(prefix="b") as folder,
        ):
            measure(side, Path(folder), files, figures, f"backend-{side.key}")
