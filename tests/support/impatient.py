"""Runs kumadp with little patience: ``impatient.py python -m kumadp ...``, the prefix of a command line as it is."""

from __future__ import annotations

import runpy
import sys

from kumadp.lifecycle import patience

if __name__ == "__main__":
    patience.AWAY, patience.PATIENCE, patience.PATIENCE_WITH_A_FRIEND = 0.1, 0.5, 1.0
    sys.argv = sys.argv[3:]
    runpy.run_module("kumadp", run_name="__main__", alter_sys=True)
