"""A policy changes in a real mesh (KUMA_CP) of 1,000 services: bytes from the control plane, and processor time.

The same for a kuma-dp (KUMADP_BENCH_PEER) in the same run, and up to 2.14 for one that requests delta xDS;
KUMADP_BENCH_ONLY=peer leaves kumadp out. Each takes minutes: Envoy is busy with a thousand listeners.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.bench.sides import peer_side, sides
from tests.bench.test_mesh import environment_of
from tests.bench.test_start import note, processor_time
from tests.support.daemon import Ports, get, workload
from tests.support.kuma_control_plane import control_plane
from tests.support.kuma_resources import dataplane, mesh_services, reference, with_both
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.sides import Side
    from tests.support.kuma_control_plane import ControlPlaneFiles, KumaControlPlane

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.kuma_cp, pytest.mark.timeout(7200)]

SERVICES = 1000
# Envoy needs some 30 s of a processor for a change of all services, and 0.1 s for one of them.
ROUNDS = {"a policy for one service": 3, "a policy for all services": 1}
QUIET_ROUNDS = 3
# All are at rest if Envoy uses less processor time (ms) than this in such a window (seconds).
WINDOW, RESTING = 3.0, 60.0
LONGEST = 600.0
# An address of our own, and ports below those of `tests.support.ports`: a thousand of them are bound.
HOST, FIRST_PORT = "127.77.0.1", 12_001
DELTA = {"KUMA_DATAPLANE_RUNTIME_ENVOY_XDS_TRANSPORT_PROTOCOL_VARIANT": "DELTA_GRPC"}
BYTES, ENVOY, SECONDS = "from the control plane, KB", "processor time of Envoy, ms", "time, s"
Figures = dict[str, float]
# Seconds of a time-out, other ones at each change.
TURNS = itertools.count(10)


def fill(plane: KumaControlPlane, resource: dict[str, Any]) -> dict[str, Any]:
    """Put 1,000 services into the mesh; return the Dataplane with outbounds that lead to them."""
    if plane.by_tags:
        plane.put("/meshes/default", {"type": "Mesh", "name": "default", "meshServices": {"mode": "Exclusive"}})
    [own] = mesh_services(resource, by_tags=False)
    # The one way to select that all versions have.
    own["spec"]["selector"] = {"dataplaneRef": {"name": resource["name"]}}
    plane.put_resource(own)
    full = with_both(resource)
    for number in range(SERVICES):
        service = copy.deepcopy(own) | {"name": f"backend-{number:04d}"}
        plane.put_resource(service)
        outbound = {"address": HOST, "port": FIRST_PORT + number, "backendRef": reference(service["name"])}
        full["networking"]["outbound"].append(outbound)
    return full


def put_timeout(plane: KumaControlPlane, target: dict[str, Any], seconds: int) -> None:
    """Change the time-outs towards a service, or all of them: their clusters and listeners change."""
    default = {"connectionTimeout": f"{seconds}s", "http": {"requestTimeout": f"{seconds}s"}}
    spec = {"targetRef": {"kind": "Mesh"}, "to": [{"targetRef": target, "default": default}]}
    plane.put_resource({"type": "MeshTimeout", "mesh": "default", "name": target["kind"].lower(), "spec": spec})


def received() -> int:
    """Bytes that arrived on connections to the control plane."""
    listing = subprocess.run(["ss", "-tniH", "dport = :5678"], check=True, capture_output=True, text=True).stdout
    return sum(map(int, re.findall(r"bytes_received:(\d+)", listing)))


class Running:
    """A kumadp or kuma-dp with its Envoy, and the control plane."""

    def __init__(self, process: psutil.Process, plane: KumaControlPlane) -> None:
        envoy = next(child for child in process.children() if child.name() == "envoy")
        self._pids = {"Envoy": envoy.pid, "the supervisor": process.pid, "the control plane": plane.pid}

    def _figures(self) -> Figures:
        times = {f"processor time of {name}, ms": processor_time(pid) * 1000 for name, pid in self._pids.items()}
        return {BYTES: received() / 1000, **times, SECONDS: time.monotonic()}

    def watch(self, change: Callable[[], None], least: float = 0.0) -> Figures:
        """Return what is used after a change until all are at rest, with more than ``least`` KB sent."""
        before = last = self._figures()
        change()

        def used() -> Figures | None:
            nonlocal last
            time.sleep(WINDOW)
            former, last = last, self._figures()
            sent = last[BYTES] - before[BYTES] >= least
            return difference(last, before) if sent and last[ENVOY] - former[ENVOY] < RESTING else None

        return poll(used, what="Envoy at rest after a change", deadline=LONGEST)


def difference(later: Figures, earlier: Figures, factor: float = 1.0) -> Figures:
    """Return the differences, the earlier ones multiplied."""
    return {name: figure - factor * earlier[name] for name, figure in later.items()}


@contextlib.contextmanager
def running(
    side: Side, folder: Path, files: ControlPlaneFiles, name: str, environment: dict[str, str]
) -> Iterator[Running]:
    """Run a kumadp or kuma-dp in the mesh of 1,000 services."""
    ports, ours = Ports.take(), side.is_ours
    with workload("backend") as app, (folder / "log").open("wb") as out:
        file = folder / "dp.json"
        file.write_text(json.dumps(fill(files.real, dataplane(name, "backend", ports, app.port, probes=False))))
        # Nothing of an earlier run, with another control plane.
        folders = (f"--work-dir={folder}/w", f"--state-dir={folder}/s") if ours else ()
        process = subprocess.Popen(
            [side.command, "run", *files.arguments, f"--dataplane-file={file}", *folders],
            env=environment_of(folder, ports, ours=ours) | environment,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )

        def serves() -> bool:
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            return get(ports.outbound) == (200, "backend")

        try:
            poll(serves, what=f"traffic by {name}", deadline=LONGEST)
            # Until the control plane knows that its endpoints are healthy.
            time.sleep(5 * WINDOW)
            yield Running(psutil.Process(process.pid), files.real)
        finally:
            process.terminate()
            process.wait(40)


def measure(at: Running, plane: KumaControlPlane, table: list[tuple[str, str, str]], name: str) -> None:
    """Note what each change costs, less what the same seconds cost without one."""
    name_of_one = "backend-0500"
    by = {"name": name_of_one} if plane.by_tags else {"labels": {"kuma.io/display-name": name_of_one}}
    one = {"kind": "MeshService", "sectionName": "80", **by}
    targets: dict[str, dict[str, Any]] = {
        "a policy for one service": one,
        "a policy for all services": {"kind": "Mesh"},
    }
    for what, target in targets.items():
        # The first one makes the policy, and what is left of the start is over.
        at.watch(functools.partial(put_timeout, plane, one, next(TURNS)), least=1.0)
        quiets = [at.watch(lambda: None) for _ in range(QUIET_ROUNDS)]
        quiet = {figure: min(each[figure] for each in quiets) for figure in quiets[0]}
        rounds = []
        for _ in range(ROUNDS[what]):
            figures = at.watch(functools.partial(put_timeout, plane, target, next(TURNS)), least=1.0)
            rounds.append(difference(figures, quiet, figures[SECONDS] / quiet[SECONDS]))
        for figure in (BYTES, *(figure for figure in rounds[0] if figure not in (BYTES, SECONDS))):
            label, _, unit = figure.rpartition(", ")
            note(table, f"{name}, {what}: {label}", unit, [figures[figure] for figures in rounds])


def test_a_policy_changes(tmp_path: Path, table: list[tuple[str, str, str]]) -> None:
    with control_plane(tmp_path / "cp") as files:
        programs: list[tuple[str, Side, dict[str, str]]] = [(side.name, side, {}) for side in sides()]
        peer = peer_side()
        if peer is not None and files.real.by_tags:
            programs.append((f"{peer.name}, delta", peer, DELTA))
        for number, (name, side, environment) in enumerate(programs):
            # A short path: the sockets of kuma-dp must fit into 98 bytes.
            with (
                tempfile.TemporaryDirectory(prefix="b") as folder,
                running(side, Path(folder), files, f"backend-dp-{number}", environment) as at,
            ):
                measure(at, files.real, table, name)
