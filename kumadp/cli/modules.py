"""Running modules of ours by the Python that runs us."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where `kumadp` is imported from. The Debian package has a folder of its own, which only its launcher knows.
_ROOT = Path(__file__).resolve().parents[2]


def environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment in which ``python -m kumadp`` is this kumadp."""
    found = dict(os.environ if environ is None else environ)
    return {**found, "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), found.get("PYTHONPATH"))))}


def shown(module: str) -> str:
    """A command for a shell that runs a module of ours."""
    known = str(_ROOT) in site.getsitepackages() or (_ROOT / "pyproject.toml").exists()
    return f"{'' if known else f'PYTHONPATH={_ROOT} '}{sys.executable} -m {module}"
