"""The bootstrap on disk, for Envoy alone to read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Write a file, mode 0600, by a rename: a reader sees the old or the new content, never a part. May block."""
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def write_bootstrap(path: Path, bootstrap: Mapping[str, Any]) -> Path:
    """Write a bootstrap, 0600, as JSON, which is YAML; returns ``path``. May block."""
    write_private(path, json.dumps(bootstrap, indent=1).encode())
    return path
