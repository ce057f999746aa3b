"""A real Envoy that speaks to the test control plane itself, with nothing between."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import urllib.request
from base64 import b64decode
from typing import TYPE_CHECKING, Any

from tests.support.daemon import get
from tests.support.needs import need_envoy
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.daemon import Ports
    from tests.support.xds.plane import XdsControlPlane
    from tests.support.xds.resources import Tree


def bootstrap_request(plane: XdsControlPlane, name: str, dataplane: Tree, workdir: Path, *features: str) -> Tree:
    """What kuma-dp 2.13.5 asks with, the little that our control plane reads."""
    return {
        "mesh": "default",
        "name": name,
        "proxyType": "dataplane",
        "dataplaneToken": plane.token("default", name),
        "dataplaneResource": json.dumps(dataplane),
        "version": {"kumaDp": {"version": "2.13.5"}, "envoy": {"version": "1.40.0"}},
        "caCert": plane.ca,
        "workdir": str(workdir),
        "features": list(features),
    }


def fetch_bootstrap(plane: XdsControlPlane, request: Tree, url: str = "") -> Tree:
    """The bootstrap for a request, through the port; raises OSError."""
    context = ssl.create_default_context(cadata=plane.ca) if plane.tls else None
    asked = urllib.request.Request(f"{url or plane.url}/bootstrap", data=json.dumps(request).encode())
    with urllib.request.urlopen(asked, timeout=10, context=context) as answer:
        found: Tree = json.loads(b64decode(json.loads(answer.read())["bootstrap"]))
        return found


class DirectEnvoy:
    """An Envoy with a bootstrap; `kill` and `start` as a supervisor would that only restarts."""

    def __init__(self, folder: Path, bootstrap: Tree) -> None:
        self.binary = need_envoy()
        self.file = folder / "bootstrap.json"
        self.file.write_text(json.dumps(bootstrap))
        self.log = folder / "envoy.log"
        self.admin = int(bootstrap["admin"]["address"]["socketAddress"]["portValue"])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [self.binary, "-c", str(self.file), *arguments], stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

    def live(self) -> bool:
        """Whether it has its first listeners."""
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        return get(self.admin, "/ready", timeout=1)[0] == 200

    def wait_live(self, deadline: float = 30.0) -> None:
        poll(self.live, what="a live Envoy", deadline=deadline)

    def stats(self, prefix: str) -> dict[str, Any]:
        """Counters and gauges whose names start so."""
        status, text = get(self.admin, f"/stats?format=json&filter=^{prefix}")
        found = json.loads(text)["stats"] if status == 200 else []
        return {entry["name"]: entry["value"] for entry in found if "name" in entry}

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


@contextlib.contextmanager
def direct_envoy(folder: Path, plane: XdsControlPlane, dataplane: Tree, ports: Ports) -> Iterator[DirectEnvoy]:
    """A started Envoy with the bootstrap that ``plane`` answers for a Dataplane; ended in the end."""
    request = bootstrap_request(plane, dataplane["name"], dataplane, folder)
    envoy = DirectEnvoy(folder, fetch_bootstrap(plane, request))
    envoy.start()
    try:
        yield envoy
    finally:
        envoy.close()
