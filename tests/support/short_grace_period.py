"""Runs kumadp with shorter grace periods: ``short_grace_period.py SECONDS SECONDS_IF_ESTABLISHED python -m kumadp``."""

from __future__ import annotations

import runpy
import sys

from kumadp.core import grace_period
from kumadp.relay import plane_condition

if __name__ == "__main__":
    plane_condition.UNREACHABLE_AFTER = 0.1
    grace_period.GRACE_PERIOD, grace_period.ESTABLISHED_GRACE_PERIOD = map(float, sys.argv[1:3])
    sys.argv = sys.argv[5:]
    runpy.run_module("kumadp", run_name="__main__", alter_sys=True)
