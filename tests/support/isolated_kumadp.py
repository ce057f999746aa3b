"""``python -m tests.support.isolated_kumadp ARGS`` runs kumadp as if no other kumadp ran on this host.

It looks for control sockets only in the folders that the environment names, which belong to the test; the folders of
the host and the sockets that the kernel lists are skipped.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.daemon import instances
from kumadp.host.net import socket_paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def folders_of_test(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the folders of control sockets that the environment names."""
    variables = [environ.get(name, "") for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR")]
    for folder in socket_paths.folders(environ):
        if any(text and str(folder).startswith(text.split(":")[0]) for text in variables):
            yield folder


def isolate() -> None:
    """Have commands of this process find only the data planes of the test."""
    instances.PROC = socket_paths.RUN = Path("/nonexistent")
    instances.folders = folders_of_test  # type: ignore[attr-defined]


if __name__ == "__main__":
    isolate()
    runpy.run_module("kumadp", run_name="__main__", alter_sys=True)
