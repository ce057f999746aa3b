"""What shows that another Envoy is installed in the place of the one that runs."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from kumadp.envoy.launch import described

if TYPE_CHECKING:
    from pathlib import Path


def test_the_same_program_installed_again_is_the_same(tmp_path: Path) -> None:
    program, again = tmp_path / "envoy", tmp_path / "again"
    program.write_bytes(b"one")
    before = described(program)
    shutil.copy2(program, again)
    again.replace(program)
    assert described(program) == before


def test_another_program_is_another(tmp_path: Path) -> None:
    program = tmp_path / "envoy"
    program.write_bytes(b"one")
    before = described(program)
    program.write_bytes(b"other")
    os.utime(program, ns=(0, 0))
    assert described(program) != before
    larger = described(program)
    os.utime(program, ns=(0, 1))
    assert described(program) != larger
