"""An Envoy with so many clusters that its exposition is large: names as Kuma gives them to services that are split."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING, Any

from tests.support.daemon import get
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.scripted_control_plane import socket_address, static_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# With these the exposition of Envoy 1.40 has 94,000 lines, 9.3 MB.
CLUSTERS = 547


def split_names(count: int) -> list[str]:
    """Names of clusters: each service has two, which differ in the hash at the end."""
    return [f"backend-{number // 2:04d}-{number:016x}" for number in range(count)]


def large_bootstrap(port: int, count: int = CLUSTERS) -> dict[str, Any]:
    """Admin on loopback, many clusters, no listener."""
    clusters = [static_cluster(name, socket_address(9)) for name in split_names(count)]
    return {
        "node": {"id": "default.large", "cluster": "large"},
        "admin": {"address": socket_address(port)},
        "staticResources": {"clusters": [*clusters, static_cluster("ads_cluster", socket_address(9))]},
    }


@contextlib.contextmanager
def large_envoy(folder: Path, port: int, count: int = CLUSTERS) -> Iterator[int]:
    """Such an Envoy, with its admin on ``port``; its pid."""
    config = folder / "large.json"
    config.write_text(json.dumps(large_bootstrap(port, count)))
    with (folder / "envoy.log").open("wb") as out:
        argv = [str(need_envoy()), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
        process = subprocess.Popen(argv, stdout=out, stderr=out)
    try:
        poll(lambda: get(port, "/ready")[0] == 200, what="a large Envoy", deadline=60)
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)
