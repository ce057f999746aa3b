"""The program itself, run to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]


def kumadp(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
    deadline: float = 30.0,
) -> subprocess.CompletedProcess[str]:
    """``kumadp ARGUMENTS`` with what it printed; our own variables do not reach it, a traceback is a failure."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("KUMA", "POD_", "COLUMNS"))}
    done = subprocess.run(
        [sys.executable, "-m", "kumadp", *arguments],
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
