"""`kumadp run` against a real control plane, where KUMA_CP names a `kuma-cp` binary."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from tests.support.daemon import Ports, get, run_kumadp, workload
from tests.support.kuma_control_plane import call_api, control_plane
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp]


@pytest.mark.contract("a data plane: registered, virtual probes, Envoy killed, a clean stop")
def test_a_data_plane_of_a_real_mesh(tmp_path: Path) -> None:
    """Traffic through the mesh, registered at the control plane, probes with Envoy killed, a clean stop."""
    ports = Ports.take()
    with control_plane(tmp_path / "cp") as plane, workload("backend") as app:
        file = tmp_path / "dp.json"
        file.write_text(json.dumps(plane.real.suit(dataplane("backend-01", "backend", ports, app.port))))
        arguments = (*plane.arguments, f"--dataplane-file={file}", "--drain-time=1s")
        with run_kumadp(tmp_path, ports, *arguments) as daemon:
            poll(lambda: get(ports.outbound) == (200, "backend"), what="traffic through the mesh", deadline=40)
            daemon.wait_ready()
            assert get(ports.inbound) == (200, "backend")
            assert get(ports.probes, "/app/healthz") == (200, "ok")
            assert "backend-01" in call_api("/meshes/default/dataplanes").decode()
            assert plane.token.read_text() not in daemon.output()
            killed = daemon.kill_envoy()
            assert get(ports.probes, "/app/healthz") == (200, "ok")
            poll(lambda: daemon.envoy().pid != killed.pid, what="the next Envoy")
            daemon.wait_ready()
            assert get(ports.outbound) == (200, "backend")
            assert "backend-01" in call_api("/meshes/default/dataplanes").decode()
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK


@pytest.mark.contract("READY as soon as traffic flows, with the default settings")
def test_the_default_settings_become_ready_without_dns_or_metrics(tmp_path: Path) -> None:
    """DNS on, no CoreDNS, no transparent proxying: the control plane sends no names, and none are waited for."""
    ports = Ports.take()
    with control_plane(tmp_path / "cp") as plane, workload("backend") as app:
        file = tmp_path / "dp.json"
        file.write_text(json.dumps(plane.real.suit(dataplane("backend-01", "backend", ports, app.port))))
        arguments = (*plane.arguments, f"--dataplane-file={file}", "--drain-time=1s")
        # A host may have a CoreDNS on its path, which takes its time to start.
        without = {"PATH": os.defpath}
        with run_kumadp(tmp_path, ports, *arguments, dns=True, environment=without) as daemon:
            poll(lambda: get(ports.outbound) == (200, "backend"), what="traffic through the mesh", deadline=40)
            daemon.wait_ready()
            assert "waiting: dns" not in daemon.output()
            assert "no names have come" not in daemon.output()


@pytest.mark.contract("a rejection is reported and permanent")
def test_a_missing_token_ends_with_the_control_plane_s_reason(tmp_path: Path) -> None:
    ports = Ports.take()
    with control_plane(tmp_path / "cp") as plane, workload("backend") as app:
        file = tmp_path / "dp.json"
        file.write_text(json.dumps(plane.real.suit(dataplane("backend-01", "backend", ports, app.port))))
        with run_kumadp(tmp_path, ports, *plane.arguments[:-1], f"--dataplane-file={file}") as daemon:
            assert daemon.wait() == ExitCode.CONTROL_PLANE_REFUSED
            assert "token" in daemon.output().splitlines()[-1]
