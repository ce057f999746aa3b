"""Ports and files of the demo."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from kumadp.cli.demo.stage import DemoPorts, write_mesh
from kumadp.resources.load import load_resource_file
from tests.support.file_lock import file_lock

if TYPE_CHECKING:
    from pathlib import Path


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
