"""The private directory for files that outlive a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.errors import WorkDirError
from kumadp.host.work_dir import make_private

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE = Path("/var/lib/kumadp")


def open_state_dir(name: str, state_dir: str, environ: Mapping[str, str], base: Path = BASE) -> Path | None:
    """Create or open the state directory; return None if there is none. May block.

    The order is: the setting, the first of ``$STATE_DIRECTORY`` (systemd), which must be usable (else WorkDirError),
    ``/var/lib/kumadp/<name>`` if it can be created. It must belong to us, and nobody else may write there.
    """
    path = state_dir_path(name, state_dir, environ, base)
    if path is None:
        return None
    try:
        return _make(path)
    except WorkDirError:
        if is_named(state_dir, environ):
            raise
        return None


def is_named(state_dir: str, environ: Mapping[str, str]) -> bool:
    """Return whether the user or systemd names it, so that it must be usable."""
    return bool(state_dir or environ.get("STATE_DIRECTORY"))


def state_dir_path(name: str, state_dir: str, environ: Mapping[str, str], base: Path = BASE) -> Path | None:
    """Return the path of the state directory, which need not exist yet, or None."""
    if state_dir:
        return Path(state_dir)
    if from_systemd := environ.get("STATE_DIRECTORY"):
        return Path(from_systemd.split(":")[0])
    if name and name not in {".", ".."} and "/" not in name:
        return base / name
    return None


def _make(path: Path) -> Path:
    private = make_private(path, "--state-dir")
    if private.stat().st_uid != os.geteuid():
        raise WorkDirError(f"{path} belongs to another user", "choose another --state-dir")
    return private
