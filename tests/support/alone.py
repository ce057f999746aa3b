"""``python -m tests.support.alone ARGS`` is kumadp as on a host where no other test has a data plane running.

Control sockets are looked for in folders that the environment names, which are the test's own; those of the host, and
those that the kernel lists, are left out.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.daemon import control
from kumadp.daemon import instances as finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def named(environ: Mapping[str, str]) -> Iterator[Path]:
    """Those of the folders that the environment names."""
    variables = [environ.get(name, "") for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR")]
    for folder in control.folders(environ):
        if any(text and str(folder).startswith(text.split(":")[0]) for text in variables):
            yield folder


if __name__ == "__main__":
    finding.PROC = control.RUN = Path("/nonexistent")
    finding.folders = named  # type: ignore[attr-defined]
    runpy.run_module("kumadp", run_name="__main__", alter_sys=True)
