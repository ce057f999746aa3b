"""Private files: written as a whole, 0600, and read only if no other user could have written them."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import msgspec
import pytest

from kumadp.host.private_file import NotOurs, make_folders, read_private, write_json, write_private

if TYPE_CHECKING:
    from pathlib import Path


class Child(msgspec.Struct):
    name: str
    pids: tuple[int, ...] = ()


class State(msgspec.Struct):
    children: tuple[Child, ...]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        make_folders(tmp_path / "a" / "b")
        write_private(tmp_path / "a" / "b" / "file", b"text")
    finally:
        os.umask(previous)
    assert (mode_of(tmp_path / "a"), mode_of(tmp_path / "a" / "b")) == (0o755, 0o700)
    assert mode_of(tmp_path / "a" / "b" / "file") == 0o600
    assert names_in(tmp_path / "a" / "b") == ["file"]


def test_json_of_structs_and_of_any_text(tmp_path: Path) -> None:
    value = {"state": State((Child("web", (1, 2)),)), "text": "é\udc80", "number": 2**80, "none": None}
    path = write_json(tmp_path / "state.json", value)
    text = path.read_text()
    assert text.isascii()
    assert text.endswith("}\n")
    assert json.loads(text) == {**value, "state": {"children": [{"name": "web", "pids": [1, 2]}]}}
    assert write_json(path, State(())).read_text() == '{\n "children": []\n}\n'


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(path, b"new")
    assert (path.read_bytes(), names_in(tmp_path)) == (b"old", ["file"])
    # Without a flush to the disk it does not matter.
    write_private(path, b"new", sync=False)
    assert path.read_bytes() == b"new"


def test_reading_is_limited_to_files_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, b"text")
    assert read_private(path, 4) == b"text"
    with pytest.raises(NotOurs, match="larger than 3 bytes"):
        read_private(path, 3)
    path.chmod(0o644)
    with pytest.raises(NotOurs, match="other users could read or change it"):
        read_private(path, 4)
    assert read_private(path, 4, private=False) == b"text"
    path.chmod(0o600)
    (tmp_path / "second").hardlink_to(path)
    with pytest.raises(NotOurs, match="hard link"):
        read_private(path, 4)
