"""One scrape of an Envoy with 94,000 lines: processor time and peak memory, beside a kuma-dp in the same run."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.host.socket_names import kuma_socket, metrics
from tests.bench.figures import ROUNDS
from tests.bench.sides import in_turn
from tests.bench.test_mesh import environment_of
from tests.bench.test_start import note, processor_time, rest
from tests.support.daemon import Ports, get
from tests.support.dynconf import SOCKET, dynconf_listener, with_etags
from tests.support.many_clusters import large_bootstrap
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.scripted_control_plane import TOKEN, ScriptedControlPlane, bootstrap_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.figures import Figures

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(600), pytest.mark.goals]

# Of each program, and in each turn.
TURNS, SCRAPES = min(ROUNDS, 2), 3
# The merge makes one of two clusters.
LINES = 40_000
NAME = "large"
EXTRA = {"mesh": "default", "dataplane": NAME, "service": NAME, "kuma_io_service": NAME, "kuma_io_zone": "default"}
POLICY = json.dumps(
    {
        "observability": {
            "metrics": {
                "applications": None,
                "backends": [{"type": "Prometheus", "name": None}],
                "sidecar": {"profiles": {"appendProfiles": [{"name": "All"}]}, "includeUnused": True},
                "extraLabels": EXTRA,
            }
        }
    }
)


def bootstrap(ports: Ports, folder: Path) -> dict[str, Any]:
    """Many clusters, and the policy at the path that a data plane requests."""
    large = large_bootstrap(ports.admin)
    listener = dynconf_listener(folder / SOCKET, with_etags({"/meshmetric": POLICY}))
    large["staticResources"]["listeners"] = [{key: value for key, value in listener.items() if key != "@type"}]
    return large


def replacement_program(folder: Path, ports: Ports, exposition: bytes) -> dict[str, str]:
    """What makes a program run `replacement_envoy` in Envoy's place."""
    stored, program = folder / "exposition", folder / "envoy"
    stored.write_bytes(exposition)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent / "replacement_envoy.py"} "$@"\n')
    program.chmod(0o755)
    return {
        "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": str(program),
        "REPLACEMENT_PORT": str(ports.admin),
        "REPLACEMENT_FILE": str(stored),
        "REPLACEMENT_SOCKET": str(folder / SOCKET),
        "REPLACEMENT_BODY": POLICY,
    }


@contextlib.contextmanager
def running(program: list[str], exposition: bytes = b"") -> Iterator[tuple[int, Path, Ports]]:
    """A program with a large Envoy, or with the replacement that serves ``exposition``: its pid, its socket."""
    ports = Ports.take()
    with tempfile.TemporaryDirectory(prefix="kb") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        plane = stack.enter_context(ScriptedControlPlane(bootstrap_answer(bootstrap(ports, folder))))
        token = folder / "token"
        token.write_text(TOKEN)
        environment = {
            **environment_of(folder, ports),
            "KUMA_DATAPLANE_RUNTIME_SOCKET_DIR": str(folder),
            "KUMA_DATAPLANE_RUNTIME_CONFIG_DIR": str(folder),
            "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": str(need_envoy()),
            **(replacement_program(folder, ports, exposition) if exposition else {}),
        }
        arguments = [f"--cp-address={plane.url}", f"--ca-cert-file={plane.write_ca(folder / 'ca')}"]
        arguments += [f"--dataplane-token-file={token}", f"--name={NAME}", "--mesh=default"]
        with (folder / "log").open("wb") as out:
            process = subprocess.Popen(
                [*program, "run", *arguments], env=environment, stdout=out, stderr=out, cwd=folder
            )
        try:
            path = kuma_socket(folder, metrics(NAME, "default"))
            what = f"its socket\n{(folder / 'log').read_text()[-2000:]}"
            poll(lambda: path.exists() and get(ports.admin, "/ready")[0] == 200, what=what, deadline=40)
            rest()
            yield process.pid, path, ports
        finally:
            process.terminate()
            process.wait(40)


def scraped(path: Path, target: str) -> bytes:
    """The answer."""
    argv = ["curl", "-sS", "--unix-socket", str(path), f"http://localhost{target}"]
    return subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout


def memory(pid: int, name: str) -> float:
    """In MB, by /proc/PID/status."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def measure(pid: int, path: Path, target: str) -> tuple[list[float], list[float]]:
    """Return processor times (seconds), and memory at the peak above what was there before (MB)."""
    assert scraped(path, target).count(b"\n") > LINES
    rest()
    seconds, more = [], []
    for _ in range(SCRAPES):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        before, since = memory(pid, "VmRSS"), processor_time(pid)
        scraped(path, target)
        seconds.append(processor_time(pid) - since)
        more.append(memory(pid, "VmHWM") - before)
    return seconds, more


def wait_policy(path: Path) -> None:
    """Wait until the policy, which wants everything, has come."""
    poll(lambda: scraped(path, "/meshmetric").count(b"\n") > LINES, what="the policy", deadline=40)


def test_one_scrape_of_94000_lines(figures: Figures, table: list[tuple[str, str, str]]) -> None:
    exposition = b""
    for _, side in in_turn(TURNS):
        with running([side.command]) as (pid, path, ports):
            if not exposition:
                exposition = get(ports.admin, "/stats?format=prometheus&text_readouts=", timeout=30)[1].encode()
                note(table, "Envoy's exposition", "MB", [len(exposition) / 1e6])
                note(table, "its lines, in thousands", "", [exposition.count(b"\n") / 1000])
            seconds, more = measure(pid, path, "/")
            figures.add("scrape.clusters", side.key, *seconds)
            figures.add("scrape.memory", side.key, *more)
            if side.is_ours:
                wait_policy(path)
                figures.add("scrape.mesh_metric", side.key, *measure(pid, path, "/meshmetric")[0])
        if not side.is_ours:
            # It would request only used metrics from Envoy: the replacement serves all.
            with running([side.command], exposition) as (pid, path, _):
                wait_policy(path)
                figures.add("scrape.mesh_metric", side.key, *measure(pid, path, "/meshmetric")[0])
