"""Fields of a Dataplane that standalone mode rejects or ignores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.resources.load import load_resource_file
from kumadp.resources.types import Dataplane
from kumadp.standalone.unsupported_fields import ignored_fields, unsupported_fields
from tests.standalone.meshes import CASES, ours
from tests.support.mesh import Tree, dataplane, outbound, write

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.resources.resource import Resource


def loaded(folder: Path, tree: Tree) -> tuple[Resource, Dataplane]:
    resource = load_resource_file(write(folder, tree) / f"{tree['name']}.yaml")
    assert isinstance(resource.spec, Dataplane)
    return resource, resource.spec


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_the_table_is_rejected(tmp_path: Path, name: str) -> None:
    assert unsupported_fields(*loaded(tmp_path, CASES[name].dataplanes[0])) == []


def test_all_problems_are_reported_with_their_lines(tmp_path: Path) -> None:
    tree = ours(
        outbound(10001, "localhost:1"),
        {"port": 10002, "backendRef": {"kind": "MeshMultiZoneService", "name": "b", "port": 80}},
        metrics={"type": "prometheus", "conf": {"path": "metrics"}},
    )
    problems = unsupported_fields(*loaded(tmp_path, tree))
    assert [problem.path for problem in problems] == [
        'networking.outbound[0].tags["kuma.io/service"]',
        "networking.outbound[1].backendRef.kind",
        "metrics.conf.path",
    ]
    assert all(problem.line and problem.file and problem.hint for problem in problems)


def test_a_dataplane_without_anything(tmp_path: Path) -> None:
    (problem,) = unsupported_fields(*loaded(tmp_path, dataplane("web", [])))
    assert problem.path == "networking"


@pytest.mark.parametrize(
    ("metrics", "paths"),
    [
        (None, []),
        ({"type": "prometheus", "conf": {"port": 1234}}, []),
        (
            {"type": "prometheus", "conf": {"tags": {"a": "b"}, "tls": {"mode": "disabled"}}},
            ["metrics.conf.tls", "metrics.conf.tags"],
        ),
    ],
)
def test_ignored_fields(tmp_path: Path, metrics: Tree | None, paths: list[str]) -> None:
    tree = ours() if metrics is None else ours(metrics=metrics)
    _, spec = loaded(tmp_path, tree)
    assert [path for path, _ in ignored_fields(spec)] == paths
