"""The FIFO of access logs: what becomes of the one that is there, and how its content is split into lines."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from kumadp.accesslog import fifo
from tests.support.event_loops import on_both_loops

if TYPE_CHECKING:
    from pathlib import Path


class Lines:
    """A reader, and what it has passed on."""

    def __init__(self, path: Path, waiting: bytes = b"") -> None:
        descriptor, _ = fifo.open_fifo(path)
        self.lines: list[bytes] = []
        self.too_long = self.behind = 0
        self.reader = fifo.LineReader(descriptor, self.lines.extend, self._too_long, self._behind, waiting)
        self.writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)

    def _too_long(self) -> None:
        self.too_long += 1

    def _behind(self) -> None:
        self.behind += 1

    def close(self) -> None:
        os.close(self.writer)
        self.reader.close()


@on_both_loops
async def test_lines_are_passed_on_whole_in_order(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "al", waiting=b"first\nsec")
    assert lines.reader.rest == b"first\nsec"
    lines.reader.start()
    assert (lines.lines, lines.reader.rest) == ([b"first"], b"sec")
    os.write(lines.writer, b"ond\n\nthi")
    lines.reader.drain()
    assert (lines.lines, lines.reader.rest) == ([b"first", b"second", b""], b"thi")
    lines.close()


@on_both_loops
async def test_lines_are_read_as_they_are_written(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "al")
    lines.reader.start()
    os.write(lines.writer, b"one\n")
    async with asyncio.timeout(10):
        while not lines.lines:
            await asyncio.sleep(0.001)
    assert (lines.lines, lines.behind) == ([b"one"], 0)
    lines.close()


@on_both_loops
async def test_a_line_that_is_too_long_is_discarded_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fifo, "LONGEST_LINE", 10)
    lines = Lines(tmp_path / "al")
    lines.reader.start()
    for part in (b"x" * 11, b"y" * 11, b"z\ngood\n"):
        os.write(lines.writer, part)
        lines.reader.drain()
    assert (lines.lines, lines.too_long) == ([b"good"], 1)
    lines.close()


@on_both_loops
async def test_a_full_fifo_is_reported(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "al")
    lines.reader.start()
    os.write(lines.writer, b"x\n" * (1 << 20))
    lines.reader.drain()
    assert lines.behind == 1
    lines.close()


def test_a_fifo_that_an_envoy_has_open_stays(tmp_path: Path) -> None:
    """Its content is read too."""
    path = tmp_path / "al"
    first, waiting = fifo.open_fifo(path)
    assert (stat.S_IMODE(path.stat().st_mode), waiting) == (0o600, b"")
    node = path.stat().st_ino
    envoy = os.open(path, os.O_WRONLY)
    os.write(envoy, b"left\n")
    os.close(first)
    second, waiting = fifo.open_fifo(path)
    assert (path.stat().st_ino, waiting) == (node, b"left\n")
    os.write(envoy, b"more\n")
    os.close(second)
    fifo.remove_unheld(path)
    assert path.exists()
    second, waiting = fifo.open_fifo(path)
    assert waiting == b"more\n"
    os.close(second)
    fifo.remove_unheld(path)
    assert path.exists()
    os.close(envoy)
    fifo.remove_unheld(path)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "link", "socket", "free"])
def test_any_other_file_is_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "al"
    if kind == "file":
        path.write_text("of a previous Envoy")
    elif kind == "link":
        path.symlink_to("/nowhere")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    else:
        os.mkfifo(path, 0o666)
    descriptor, _ = fifo.open_fifo(path)
    assert stat.S_ISFIFO(path.lstat().st_mode)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    os.close(descriptor)
