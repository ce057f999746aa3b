"""``python -m tests.support.clock FILE PYTHON -m MODULE ARGS`` runs a module whose time of day is off by the seconds in
a file, which may change while it runs.

Only Python's `time.time` is: Envoy, OpenSSL and the monotonic clock have the host's time.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path


def shifted(file: Path) -> tuple[str, ...]:
    """Return what to put before ``python -m MODULE``."""
    set_clock(file, 0)
    return (sys.executable, "-m", "tests.support.clock", str(file))


def set_clock(file: Path, seconds: int) -> None:
    """Have the clock be ahead by so many seconds."""
    new = file.with_suffix(".new")
    new.write_text(str(seconds))
    new.replace(file)


def _shift(file: Path) -> None:
    real = time.time
    read = [0.0, 0.0]

    def shifted_time() -> float:
        now = time.monotonic()
        if now - read[0] > 0.05:
            read[:] = now, float(file.read_text())
        return real() + read[1]

    time.time = shifted_time


if __name__ == "__main__":
    _shift(Path(sys.argv[1]))
    module = sys.argv[4]
    sys.argv = sys.argv[4:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
