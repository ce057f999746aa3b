"""A real Envoy that speaks to a control plane itself, with nothing between."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import urllib.request
from base64 import b64decode
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.daemon import get_at
from tests.support.needs import need_envoy
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.control_planes import ControlPlane
    from tests.support.daemon import Ports
    from tests.support.xds.resources import Tree


def bootstrap_request(
    plane: ControlPlane, name: str, dataplane: Tree, workdir: Path, *features: str, readiness: int = 9902
) -> Tree:
    """The bootstrap request of kuma-dp 2.13.5, reduced to what control planes need; ``readiness`` is a port."""
    return {
        "mesh": "default",
        "name": name,
        "proxyType": "dataplane",
        "dataplaneToken": plane.token("default", name),
        "dataplaneResource": json.dumps(dataplane),
        "version": {"kumaDp": {"version": "2.13.5"}, "envoy": {"version": "1.40.0"}},
        "caCert": plane.ca,
        "workdir": str(workdir),
        "readinessPort": readiness,
        "features": list(features),
    }


def fetch_bootstrap(plane: ControlPlane, request: Tree) -> Tree:
    """The bootstrap for a request, through the port; raises OSError."""
    context = ssl.create_default_context(cadata=plane.ca) if plane.url.startswith("https") else None
    headers = {"accept": "application/json", "content-type": "application/json"}
    http_request = urllib.request.Request(f"{plane.url}/bootstrap", json.dumps(request).encode(), headers)
    with urllib.request.urlopen(http_request, timeout=10, context=context) as answer:
        bootstrap: Tree = yaml.safe_load(b64decode(json.loads(answer.read())["bootstrap"]))
        return bootstrap


def _admin_of(bootstrap: Tree) -> str:
    """Return ``HOST:PORT`` or ``unix:PATH``."""
    address = bootstrap["admin"]["address"]
    if "pipe" in address:
        return f"unix:{address['pipe']['path']}"
    return f"{address['socketAddress']['address']}:{address['socketAddress']['portValue']}"


class DirectEnvoy:
    """An Envoy with a bootstrap; `kill` and `start` as a supervisor would that only restarts."""

    def __init__(self, folder: Path, bootstrap: Tree) -> None:
        self.binary = need_envoy()
        self.file = folder / "bootstrap.json"
        self.file.write_text(json.dumps(bootstrap))
        self.log = folder / "envoy.log"
        self.arguments: tuple[str, ...] = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
        self.admin = _admin_of(bootstrap)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [self.binary, "-c", str(self.file), *self.arguments], stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

    def live(self) -> bool:
        """Whether it has its first listeners."""
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        return get_at(self.admin, "/ready", timeout=1)[0] == 200

    def wait_live(self, deadline: float = 30.0) -> None:
        poll(self.live, what="a live Envoy", deadline=deadline)

    def stats(self, prefix: str) -> dict[str, Any]:
        """Counters and gauges whose names start so."""
        status, text = get_at(self.admin, f"/stats?format=json&filter=^{prefix}")
        entries = json.loads(text)["stats"] if status == 200 else []
        return {entry["name"]: entry["value"] for entry in entries if "name" in entry}

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


def reconnect_soon(bootstrap: Tree) -> None:
    """Have Envoy look for its control plane again within a second; by itself it waits up to half a minute."""
    for service in bootstrap["dynamicResources"]["adsConfig"]["grpcServices"]:
        back_off = {"baseInterval": "0.1s", "maxInterval": "0.5s"}
        service["envoyGrpc"]["retryPolicy"] = {"retryBackOff": back_off}


@contextlib.contextmanager
def direct_envoy(folder: Path, plane: ControlPlane, dataplane: Tree, ports: Ports) -> Iterator[DirectEnvoy]:
    """A started Envoy with the bootstrap that ``plane`` answers for a Dataplane; ended in the end."""
    request = bootstrap_request(plane, dataplane["name"], dataplane, folder, readiness=ports.readiness)
    bootstrap = fetch_bootstrap(plane, request)
    reconnect_soon(bootstrap)
    envoy = DirectEnvoy(folder, bootstrap)
    envoy.start()
    try:
        yield envoy
    finally:
        envoy.close()
