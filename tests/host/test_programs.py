"""Why a program that the user named cannot be run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from kumadp.host.programs import find_program, is_foreign, why_not_runnable
from tests.support.flawed_programs import put_foreign_program


def test_each_reason_names_the_program(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.touch(mode=0o644)
    assert why_not_runnable("envoy") == "envoy is not on PATH"
    assert why_not_runnable(str(tmp_path)) == f"{tmp_path} is a directory"
    assert why_not_runnable(str(text)) == f"{text} cannot be executed"
    assert why_not_runnable(f"{tmp_path}/none") == f"{tmp_path}/none is not there"


@pytest.mark.parametrize(
    "word", ["sh", "tool", "folder", "text", "", ".", "/bin/sh", "/bin", "./tool", "no/tool", "a\0b"]
)
@pytest.mark.parametrize("path", [None, "", "{folder}", "/nowhere:{folder}", ":{folder}", "{folder}:/bin"])
def test_it_is_found_as_shutil_finds_it(
    word: str, path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tool").touch(mode=0o755)
    (tmp_path / "text").touch(mode=0o644)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    place = path.format(folder=tmp_path) if path is not None else None
    assert find_program(word, place) == shutil.which(word, path=place)


def test_a_program_for_another_architecture_is_known_by_its_header(tmp_path: Path) -> None:
    python = Path(sys.executable)
    put_foreign_program(python, tmp_path / "foreign")
    (tmp_path / "script").write_text("#!/bin/sh\n")
    (tmp_path / "short").write_bytes(b"\x7fELF")
    assert is_foreign(tmp_path / "foreign")
    assert not any(is_foreign(path) for path in (python, *(tmp_path / name for name in ("script", "short", "none"))))
