"""What Envoy is told of the memory that there is."""

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


def test_without_a_limit_nothing_is_said(tmp_path: Path) -> None:
    assert overload(tmp_path, 0) is None


def test_a_fifth_is_left_to_what_is_no_heap(tmp_path: Path) -> None:
    told = overload(tmp_path, 500 << 20)
    (monitor,) = told["resourceMonitors"]
    assert monitor["typedConfig"]["maxHeapSizeBytes"] == 400 << 20
    shrink, refuse = (action["triggers"][0]["threshold"]["value"] for action in told["actions"])
    assert shrink < refuse < 1
