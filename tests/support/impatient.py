"""Runs kumadp with another patience (seconds, without and with a friend): ``impatient.py 0.5 1.0 python -m kumadp``."""

from __future__ import annotations

import runpy
import sys

from kumadp.relay import grace_period as patience

if __name__ == "__main__":
    patience.AWAY = 0.1
    patience.PATIENCE, patience.PATIENCE_WITH_A_FRIEND = map(float, sys.argv[1:3])
    sys.argv = sys.argv[5:]
    runpy.run_module("kumadp", run_name="__main__", alter_sys=True)
