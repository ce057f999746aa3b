"""Standalone mode: every way in which editors and tools change a file is seen, without a restart."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import Daemon, Ports, get
from tests.support.mesh import inbound, write
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.standalone import StandaloneStage, answers, logged, run_standalone, workloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def daemon(stage: StandaloneStage) -> Iterator[Daemon]:
    with run_standalone(stage.folder, stage.ports) as running:
        stage.leads_to(stage.first)
        yield running


def _rename_over(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.swp")
    beside.write_text(text)
    beside.replace(path)


def _truncate_and_write(path: Path, text: str) -> None:
    path.write_text(text)


def _move_into(path: Path, text: str) -> None:
    outside = path.parent.parent / path.name
    outside.write_text(text)
    shutil.move(outside, path)


def _delete_then_make(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def _backup_then_make(path: Path, text: str) -> None:
    backup = path.with_name(f"{path.name}~")
    path.rename(backup)
    path.write_text(text)
    backup.unlink()


def _link_to_elsewhere(path: Path, text: str) -> None:
    outside = path.parent.parent / f"linked-{path.name}"
    outside.write_text(text)
    beside = path.with_name(".link")
    beside.symlink_to(outside)
    beside.replace(path)


def _write_through_link(path: Path, text: str) -> None:
    path.resolve().write_text(text)


def _hard_link(path: Path, text: str) -> None:
    outside = path.parent.parent / f"hard-{path.name}"
    outside.write_text(text)
    path.unlink()
    os.link(outside, path)


def _new_folder(path: Path, text: str) -> None:
    folder = path.parent
    others = {file.name: file.read_text() for file in folder.iterdir() if file != path}
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in others.items():
        (folder / name).write_text(content)
    path.write_text(text)


WAYS: tuple[Callable[[Path, str], None], ...] = (
    _rename_over,
    _truncate_and_write,
    _move_into,
    _delete_then_make,
    _backup_then_make,
    _link_to_elsewhere,
    _write_through_link,
    _new_folder,
    _hard_link,
    _truncate_and_write,
)


def test_every_way_of_writing_a_file_is_seen_without_a_restart(stage: StandaloneStage, daemon: Daemon) -> None:
    envoy, path = daemon.envoy().pid, stage.folder / "backend.yaml"
    for index, way in enumerate(WAYS):
        server = (stage.second, stage.first)[index % 2]
        way(path, json.dumps(stage.backend(server)))
        poll(lambda: get(stage.ports.outbound) == (200, server.name), what=f"{way.__name__} ({index})")  # noqa: B023
    assert daemon.envoy().pid == envoy
    shutil.rmtree(stage.folder)
    logged(daemon, "change ignored", str(stage.folder))
    stage.write()
    (stage.folder / "backend.yaml").write_text(json.dumps(stage.backend(stage.second)))
    stage.leads_to(stage.second)


def test_a_folder_of_links_is_swapped_as_kubernetes_does(tmp_path: Path) -> None:
    ports = Ports.take()
    with workloads("web", "first", "second") as servers:
        stage = StandaloneStage(tmp_path / "mesh", ports, servers)
        stage.folder.mkdir()
        for version, server in (("..1", stage.first), ("..2", stage.second)):
            write(stage.folder / version, stage.web(), stage.backend(server))
        (stage.folder / "..data").symlink_to("..1")
        for name in ("web.yaml", "backend.yaml"):
            (stage.folder / name).symlink_to(f"..data/{name}")
        with run_standalone(stage.folder, ports):
            stage.leads_to(stage.first)
            (stage.folder / "..data_tmp").symlink_to("..2")
            (stage.folder / "..data_tmp").replace(stage.folder / "..data")
            shutil.rmtree(stage.folder / "..1")
            stage.leads_to(stage.second)


def test_a_single_file_is_followed(tmp_path: Path) -> None:
    with workloads("web", "first", "second") as servers:
        stage = StandaloneStage(tmp_path / "mesh", Ports.take(), servers)
        stage.write()
        other = free_port()
        with run_standalone(stage.folder / "web.yaml", stage.ports):
            assert get(stage.ports.outbound)[0] == 503
            write(stage.folder, stage.web(inbounds=[inbound(other, stage.app.port)]))
            answers(other, (200, "web"), "the new inbound")
            assert get(stage.ports.inbound)[0] == 0
