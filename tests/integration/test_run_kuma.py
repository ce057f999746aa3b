"""`kumadp run` against a real control plane, where KUMA_CP names a `kuma-cp` binary; figures go to the log."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from tests.support.daemon import Ports, get, run_kumadp, workload
from tests.support.needs import need_kuma_cp
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.kuma_cp, pytest.mark.xdist_group("kuma_cp")]

API = "http://127.0.0.1:5681"


def ask(path: str, body: object = None, token: str = "") -> bytes:
    request = urllib.request.Request(API + path, data=json.dumps(body).encode() if body is not None else None)
    request.add_header("content-type", "application/json")
    if token:
        request.add_header("authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=5) as answer:
        found: bytes = answer.read()
        return found


@contextlib.contextmanager
def control_plane(folder: Path) -> Iterator[Path]:
    """A real control plane in memory; yields the folder with its CA and a data plane token."""
    binary = need_kuma_cp()
    environment = {
        **os.environ,
        "KUMA_ENVIRONMENT": "universal",
        "KUMA_STORE_TYPE": "memory",
        "KUMA_MODE": "zone",
        "KUMA_GENERAL_WORK_DIR": str(folder),
        "KUMA_API_SERVER_HTTP_INTERFACE": "127.0.0.1",
        "KUMA_API_SERVER_HTTPS_INTERFACE": "127.0.0.1",
        "KUMA_REPORTS_ENABLED": "false",
    }
    with (folder / "cp.log").open("wb") as log:
        process = subprocess.Popen([binary, "run"], env=environment, stdout=log, stderr=log, cwd=folder)
    try:

        def admin_token() -> str:
            with contextlib.suppress(OSError, ValueError):
                return base64.b64decode(json.loads(ask("/global-secrets/admin-user-token"))["data"]).decode()
            return ""

        admin = poll(admin_token, what="the control plane's API", deadline=60)
        token = poll(lambda: _token(admin), what="a data plane token", deadline=30)
        (folder / "dp.token").write_bytes(token)
        yield folder
    finally:
        process.terminate()
        process.wait(20)


def _token(admin: str) -> bytes:
    with contextlib.suppress(OSError):
        return ask("/tokens/dataplane", {"mesh": "default", "validFor": "24h", "type": "dataplane"}, admin)
    return b""


def test_a_data_plane_of_a_real_mesh(tmp_path: Path) -> None:
    """Traffic through the mesh, registered at the control plane, probes with Envoy killed, a clean stop."""
    ports = Ports.take()
    (tmp_path / "cp").mkdir()
    with control_plane(tmp_path / "cp") as cp, workload("backend") as app:
        dataplane = {
            "type": "Dataplane",
            "mesh": "default",
            "name": "backend-01",
            "networking": {
                "address": "127.0.0.1",
                "inbound": [
                    {
                        "port": ports.inbound,
                        "servicePort": app.port,
                        "serviceAddress": "127.0.0.1",
                        "tags": {"kuma.io/service": "backend", "kuma.io/protocol": "http"},
                    }
                ],
                "outbound": [{"port": ports.outbound, "tags": {"kuma.io/service": "backend"}}],
                "admin": {"port": ports.admin},
            },
            "probes": {
                "port": ports.probes,
                "endpoints": [{"inboundPort": ports.inbound, "inboundPath": "/healthz", "path": "/app/healthz"}],
            },
        }
        (tmp_path / "dp.json").write_text(json.dumps(dataplane))
        started = time.monotonic()
        with run_kumadp(
            tmp_path,
            ports,
            "--cp-address=https://localhost:5678",
            f"--ca-cert-file={cp / 'kuma-cp.crt'}",
            f"--dataplane-file={tmp_path / 'dp.json'}",
            f"--dataplane-token-file={cp / 'dp.token'}",
            "--drain-time=1s",
        ) as daemon:
            poll(lambda: get(ports.outbound) == (200, "backend"), what="traffic through the mesh", deadline=40)
            sys.stdout.write(f"first answer {time.monotonic() - started:.2f} s after exec\n")
            daemon.wait_ready()
            assert get(ports.inbound) == (200, "backend")
            assert get(ports.probes, "/app/healthz") == (200, "ok")
            assert "backend-01" in ask("/meshes/default/dataplanes").decode()
            assert (cp / "dp.token").read_text() not in daemon.output()
            daemon.envoy().kill()
            assert get(ports.probes, "/app/healthz") == (200, "ok")
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK
