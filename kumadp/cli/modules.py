"""Commands that run modules of kumadp with the current Python."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# The directory that `kumadp` is imported from. The Debian package has its own, which only its launcher knows.
_ROOT = Path(__file__).resolve().parents[2]


def environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return ``environ`` (by default, that of this process) changed so that ``python -m kumadp`` runs this kumadp."""
    base = dict(os.environ if environ is None else environ)
    return {**base, "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), base.get("PYTHONPATH"))))}


def shell_command(module: str) -> str:
    """Return a shell command that runs a module of kumadp."""
    is_on_path = str(_ROOT) in site.getsitepackages() or (_ROOT / "pyproject.toml").exists()
    return f"{'' if is_on_path else f'PYTHONPATH={_ROOT} '}{sys.executable} -m {module}"
