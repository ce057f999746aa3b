"""Why a program that the user named cannot be run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.host.programs import why_not_runnable

if TYPE_CHECKING:
    from pathlib import Path


def test_each_reason_names_the_program(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.touch(mode=0o644)
    assert why_not_runnable("envoy") == "envoy is not on PATH"
    assert why_not_runnable(str(tmp_path)) == f"{tmp_path} is a directory"
    assert why_not_runnable(str(text)) == f"{text} cannot be executed"
    assert why_not_runnable(f"{tmp_path}/none") == f"{tmp_path}/none is not there"
