"""The program itself, run to its end; a command of it, called in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

    import click
    import pytest

ROOT = Path(__file__).resolve().parents[2]
# What looks for data planes that run.
FINDING = {"doctor", "drain", "log-level", "logs", "reexec", "reload", "status", "upgrade-check", "wait"}


def kumadp(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
    deadline: float = 30.0,
    alone: bool = True,
) -> subprocess.CompletedProcess[str]:
    """``kumadp ARGUMENTS`` with what it printed; our own variables do not reach it, a traceback is a failure.

    ``alone``: data planes of other tests are not found (`tests.support.isolated_kumadp`).
    """
    program = "tests.support.isolated_kumadp" if alone and arguments[:1] and arguments[0] in FINDING else "kumadp"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KUMA", "POD_", "COLUMNS"))}
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        env={**inherited, "PYTHONPATH": str(ROOT), **(environment or {})},
        cwd=cwd,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        # What is no text goes in and out as it is, as surrogates (PEP 383).
        errors="surrogateescape",
        timeout=deadline,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def invoke(command: click.Command, *arguments: str) -> str:
    """Call a command in this process and return what it printed; raises what it raises."""
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def place_program(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a program into ``folder`` and have commands find it as this kumadp, which units start."""
    file = folder / "kumadp"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(file)])
    return file
