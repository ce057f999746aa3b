"""Ports and files of the demo."""

from __future__ import annotations

import contextlib
import shutil
import socket
from pathlib import Path

from kumadp.cli.demo.stage import DemoPorts, DemoStage, write_mesh
from kumadp.resources.load import load_resource_file
from tests.support.file_lock import file_lock


def test_a_taken_port_is_replaced_and_all_differ() -> None:
    with file_lock("demo"), contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(socket.create_server(("127.0.0.1", DemoPorts().inbound)))
        with contextlib.suppress(OSError):
            udp = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            udp.bind(("127.0.0.1", DemoPorts().dns))
        chosen = DemoPorts.choose()
    assert chosen.inbound != DemoPorts().inbound
    assert chosen.dns != DemoPorts().dns
    numbers = [getattr(chosen, name) for name in DemoPorts.__struct_fields__]
    assert len(set(numbers)) == len(numbers)


def test_the_dataplanes_of_the_demo_are_right(tmp_path: Path) -> None:
    write_mesh(tmp_path / "mesh", DemoPorts())
    names = [load_resource_file(path).name for path in sorted((tmp_path / "mesh").iterdir())]
    assert names == ["backend", "web"]


def test_all_that_kumadp_writes_is_in_the_folder_that_is_removed() -> None:
    stage = DemoStage.open("5s")
    try:
        arguments = iter(stage.arguments)
        given = {name: next(arguments) for name in arguments if name.startswith("--")}
        for flag in ("--standalone", "--work-dir", "--state-dir"):
            assert Path(given[flag]).parent == stage.folder
    finally:
        shutil.rmtree(stage.folder)
