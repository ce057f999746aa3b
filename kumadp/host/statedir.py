"""The private directory for what outlives a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.errors import WorkDirError
from kumadp.host.workdir import make_private

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE = Path("/var/lib/kumadp")


def open_state_dir(name: str, state_dir: str, environ: Mapping[str, str], base: Path = BASE) -> Path | None:
    """Make or take the state directory; None where there is none. May block.

    The order is: the setting, which must be usable (else WorkDirError), the first of ``$STATE_DIRECTORY`` (systemd),
    ``/var/lib/kumadp/<name>`` when that can be made. It must be ours, and nobody else may write there.
    """
    if state_dir:
        return _make(Path(state_dir))
    path = state_dir_path(name, state_dir, environ, base)
    try:
        return _make(path) if path is not None else None
    except WorkDirError:
        return None


def state_dir_path(name: str, state_dir: str, environ: Mapping[str, str], base: Path = BASE) -> Path | None:
    """Where the state directory is, or would be; None where there is none."""
    if state_dir:
        return Path(state_dir)
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    if name and name not in {".", ".."} and "/" not in name:
        return base / name
    return None


def _make(path: Path) -> Path:
    made = make_private(path, "--state-dir")
    if made.stat().st_uid != os.geteuid():
        raise WorkDirError(f"{path} belongs to another user", "choose another --state-dir")
    return made
