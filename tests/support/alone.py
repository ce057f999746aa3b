"""``python -m tests.support.alone ARGS`` is kumadp as on a host where no other test has a data plane running.

Control sockets are looked for in folders alone, which are the test's own; those that the kernel lists are left out.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from kumadp.lifecycle import finding

if __name__ == "__main__":
    finding.PROC = Path("/nonexistent")
    runpy.run_module("kumadp", run_name="__main__", alter_sys=True)
