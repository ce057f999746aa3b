"""Reads changed files again, only these, and misses no change."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.errors import ResourceError
from kumadp.host.file_watch import folders_of
from kumadp.resources.load import load_resource_file
from kumadp.resources.types import BackendRef, Outbound
from kumadp.standalone.mesh import MeshReader, read_mesh
from kumadp.standalone.xds_files import XdsFiles
from tests.standalone.meshes import ours
from tests.support.mesh import dataplane, inbound, outbound, untagged, write
from tests.support.needs import need_netns

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.resources.resource import Resource


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def load(path: Path, *, version: str) -> Resource:
        read.append(path.name)
        return load_resource_file(path, version=version)

    monkeypatch.setattr("kumadp.standalone.mesh.load_resource_file", load)
    folder = write(tmp_path, ours(outbound(1, "b")), dataplane("b", [inbound(7000, 1, "b")], address="10.0.0.2"))
    reader = MeshReader(folder, "web")
    assert reader.changed()
    reader.read()
    assert not reader.changed()
    write(folder, dataplane("b", [inbound(7001, 1, "b")], address="10.0.0.2"))
    assert reader.changed()
    assert reader.read().offers(Outbound(tags={"kuma.io/service": "b"}))[0].endpoint.port == 7001
    assert read == ["b.yaml", "web.yaml", "b.yaml"]


def test_references_choose_by_name_or_labels_and_by_port(tmp_path: Path) -> None:
    backend = [untagged(7000, 1), untagged(7001, 1)]
    folder = write(
        tmp_path,
        ours(),
        dataplane("b-1", backend, address="10.0.0.1", labels={"kuma.io/workload": "b", "app": "shop"}),
        dataplane("b-2", [inbound(7000, 1, "b")], address="10.0.0.2", labels={"app": "shop", "zone": "x"}),
        dataplane("lone", [untagged(7000, 1)], address="10.0.0.3"),
    )
    mesh = read_mesh(folder, "web")

    def hosts(**target: Any) -> list[str]:
        found = mesh.offers(Outbound(backend_ref=BackendRef(kind="MeshService", **target)))
        return [f"{offer.endpoint.host}:{offer.endpoint.port}" for offer in found]

    assert hosts(name="b", port=7000) == ["10.0.0.1:7000", "10.0.0.2:7000"]
    assert hosts(name="b", port=7001) == ["10.0.0.1:7001"]
    assert hosts(name="b", port=7002) == hosts(name="c", port=7000) == []
    assert hosts(name="lone", port=7000) == ["10.0.0.3:7000"]
    assert hosts(labels={"app": "shop"}, port=7000) == ["10.0.0.1:7000", "10.0.0.2:7000"]
    assert hosts(labels={"app": "shop", "zone": "x"}, port=7000) == ["10.0.0.2:7000"]
    assert hosts(labels={"kuma.io/display-name": "b"}, port=7001) == ["10.0.0.1:7001"]
    by_tags = mesh.offers(Outbound(tags={"kuma.io/service": "b"}))
    assert [offer.endpoint.host for offer in by_tags] == ["10.0.0.1", "10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize(
    ("tree", "service"),
    [
        (ours(), "web"),
        (dataplane("web", [untagged(1, 2)], labels={"kuma.io/workload": "shop"}), "shop"),
        (dataplane("web", [untagged(1, 2)]), "web"),
        (dataplane("web", [], networking={"gateway": {"tags": {"kuma.io/service": "edge"}}}), "edge"),
        (dataplane("web", [], networking={"gateway": {}}), "web"),
        (dataplane("web", [], [outbound(1, "b")]), "web"),
    ],
)
def test_our_service(tmp_path: Path, tree: dict[str, Any], service: str) -> None:
    assert read_mesh(write(tmp_path, tree), "web").service == service


def test_a_broken_file_is_reported_once_and_read_again_when_it_changes(tmp_path: Path) -> None:
    reader = MeshReader(write(tmp_path, ours()), "web")
    (tmp_path / "b.yaml").write_text("type: [")
    with pytest.raises(ResourceError):
        reader.read()
    assert not reader.changed()
    (tmp_path / "b.yaml").unlink()
    assert reader.changed()
    assert reader.read().ours.name == "web"


@pytest.mark.parametrize("leftover", ["web.yaml~", ".web.yaml.swp", "#web.yaml#", "4913", ".hidden.yaml", "notes.txt"])
def test_leftovers_of_editors_are_not_read(tmp_path: Path, leftover: str) -> None:
    (write(tmp_path, ours()) / leftover).write_text("broken: [")
    assert read_mesh(tmp_path, "").ours.name == "web"


def test_every_problem_of_every_file_at_once(tmp_path: Path) -> None:
    write(tmp_path, ours())
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("type: [")
    with pytest.raises(ResourceError) as caught:
        read_mesh(tmp_path, "web")
    assert {problem.file for problem in caught.value.problems} == {str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")}


def test_a_duplicate_name_is_reported_with_both_files(tmp_path: Path) -> None:
    write(tmp_path, ours())
    for name in ("x", "y"):
        (tmp_path / f"{name}.yaml").write_text((tmp_path / "web.yaml").read_text())
    with pytest.raises(ResourceError) as caught:
        read_mesh(tmp_path, "web")
    assert len(caught.value.problems) == 2
    assert "web.yaml" in str(caught.value)
    assert "y.yaml:" in str(caught.value)


@pytest.mark.parametrize("name", ["", "other"])
def test_our_own_dataplane_must_be_unambiguous(tmp_path: Path, name: str) -> None:
    write(tmp_path, ours(), dataplane("b", [inbound(7000, 1, "b")], address="10.0.0.2"))
    with pytest.raises(ResourceError, match="b, web"):
        read_mesh(tmp_path, name)


def test_a_folder_without_dataplanes_and_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="holds no Dataplane"):
        read_mesh(tmp_path, "")
    with pytest.raises(ResourceError, match="No such file"):
        read_mesh(tmp_path / "gone", "")


def test_folders_that_matter(tmp_path: Path) -> None:
    folder, data = tmp_path / "mesh", tmp_path / "mesh" / "..1"
    data.mkdir(parents=True)
    (data / "web.yaml").touch()
    (folder / "..data").symlink_to("..1")
    (folder / "web.yaml").symlink_to("..data/web.yaml")
    (tmp_path / "link").symlink_to("mesh")
    assert folders_of(folder) == {tmp_path, folder, data}
    assert folders_of(folder / "web.yaml") == {folder, data}
    assert folders_of(tmp_path / "link") == {tmp_path, tmp_path / "link", folder, data}
    assert folders_of(tmp_path / "gone") == {tmp_path}


WITHOUT_INOTIFY = """
import asyncio, logging, sys
from pathlib import Path
from kumadp.host import file_watch as watch

logging.basicConfig()
watch.POLL_INTERVAL = 0.01

async def main():
    looks = asyncio.Queue()
    files = watch.FileWatch([Path(sys.argv[1])], lambda: looks.put_nowait(1))
    watching = asyncio.create_task(files.run(lambda: print("up")))
    for _ in range(3):
        await looks.get()
    print("looked")
    watching.cancel()

asyncio.run(main())
"""


@pytest.mark.parametrize("what", ["instances", "watches"])
def test_without_inotify_the_files_are_polled_and_that_is_logged(tmp_path: Path, what: str) -> None:
    need_netns()
    limit = f'echo 0 > /proc/sys/user/max_inotify_{what} && exec "$@"'
    argv = ["unshare", "-Ur", "sh", "-c", limit, "sh", sys.executable, "-c", WITHOUT_INOTIFY, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout.split() == ["up", "looked"], done.stderr
    assert done.stderr.count("cannot be watched") == 1
    assert "fs.inotify.max_user_instances" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_is_private_and_written_only_when_it_differs(tmp_path: Path) -> None:
    files = XdsFiles(tmp_path)
    assert files.write("a.json", {"resources": []})
    assert not files.write("a.json", {"resources": []})
    files.confirm("a.json")
    assert files.write("a.json", {"resources": [1]})
    assert not files.is_confirmed("a.json")
    assert files.version("a.json") == "2"
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o600
