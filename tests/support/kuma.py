"""A real control plane (``kuma-cp``), where KUMA_CP names one, in memory and on loopback; its ports are Kuma's own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.support.needs import need_kuma_cp
from tests.support.poll import poll
from tests.support.turns import turn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Ports

API = "http://127.0.0.1:5681"
DATA_PLANE_SERVER = "https://localhost:5678"


@dataclass(frozen=True)
class ControlPlane:
    """What a data plane needs of a running control plane."""

    ca: Path
    token: Path
    log: Path

    @property
    def arguments(self) -> tuple[str, ...]:
        """Flags that kumadp and kuma-dp both take."""
        return (
            f"--cp-address={DATA_PLANE_SERVER}",
            f"--ca-cert-file={self.ca}",
            f"--dataplane-token-file={self.token}",
        )


def ask(path: str, body: object = None, token: str = "") -> bytes:
    """An answer of the control plane's API; raises OSError."""
    request = urllib.request.Request(API + path, data=json.dumps(body).encode() if body is not None else None)
    request.add_header("content-type", "application/json")
    if token:
        request.add_header("authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=5) as answer:
        found: bytes = answer.read()
        return found


@contextlib.contextmanager
def control_plane(folder: Path) -> Iterator[ControlPlane]:
    """A running control plane with everything it writes in ``folder``; one at a time, as its ports are Kuma's own."""
    binary = need_kuma_cp()
    folder.mkdir()
    with turn("kuma-cp"):
        yield from _run(binary, folder)


def _run(binary: Path, folder: Path) -> Iterator[ControlPlane]:
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
    log = folder / "cp.log"
    with log.open("wb") as out:
        process = subprocess.Popen([binary, "run"], env=environment, stdout=out, stderr=out, cwd=folder)
    try:
        admin = poll(lambda: _admin_token(process, log), what="the control plane's API", deadline=60)
        token = poll(lambda: _dataplane_token(admin), what="a data plane token", deadline=30)
        (folder / "dp.token").write_bytes(token)
        yield ControlPlane(folder / "kuma-cp.crt", folder / "dp.token", log)
    finally:
        process.terminate()
        process.wait(20)


def _admin_token(process: subprocess.Popen[bytes], log: Path) -> str:
    assert process.poll() is None, f"the control plane ended:\n{log.read_text()[-2000:]}"
    with contextlib.suppress(OSError, ValueError):
        return base64.b64decode(json.loads(ask("/global-secrets/admin-user-token"))["data"]).decode()
    return ""


def _dataplane_token(admin: str) -> bytes:
    with contextlib.suppress(OSError):
        return ask("/tokens/dataplane", {"mesh": "default", "validFor": "24h", "type": "dataplane"}, admin)
    return b""


def dataplane(name: str, service: str, ports: Ports, app_port: int, *, probes: bool = True) -> dict[str, Any]:
    """A Dataplane with one inbound in front of ``app_port`` and one outbound that leads to itself through the mesh."""
    found: dict[str, Any] = {
        "type": "Dataplane",
        "mesh": "default",
        "name": name,
        "networking": {
            "address": "127.0.0.1",
            "inbound": [
                {
                    "port": ports.inbound,
                    "servicePort": app_port,
                    "serviceAddress": "127.0.0.1",
                    "tags": {"kuma.io/service": service, "kuma.io/protocol": "http"},
                }
            ],
            "outbound": [{"port": ports.outbound, "tags": {"kuma.io/service": service}}],
            "admin": {"port": ports.admin},
        },
    }
    if probes:
        found["probes"] = {
            "port": ports.probes,
            "endpoints": [{"inboundPort": ports.inbound, "inboundPath": "/healthz", "path": "/app/healthz"}],
        }
    return found
