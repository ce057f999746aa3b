"""Envoy's overload manager follows the memory limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kumadp.standalone.generator import bootstrap
from kumadp.standalone.mesh import read_mesh
from tests.support.mesh import dataplane, inbound, write

if TYPE_CHECKING:
    from pathlib import Path


def overload(tmp_path: Path, memory: int) -> Any:
    mesh = read_mesh(write(tmp_path / "mesh", dataplane("web", [inbound(10080, 8080)])), "web")
    return bootstrap(mesh, tmp_path, memory).get("overloadManager")


def test_without_a_limit_there_is_none(tmp_path: Path) -> None:
    assert overload(tmp_path, 0) is None


def test_a_fifth_is_left_for_memory_outside_the_heap(tmp_path: Path) -> None:
    manager = overload(tmp_path, 500 << 20)
    (monitor,) = manager["resourceMonitors"]
    assert monitor["typedConfig"]["maxHeapSizeBytes"] == 400 << 20
    shrink, reject = (action["triggers"][0]["threshold"]["value"] for action in manager["actions"])
    assert shrink < reject < 1
