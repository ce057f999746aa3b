"""Run kumadp with shorter retry pauses and log windows: ``short_backoff.py 60 python -m kumadp`` divides by 60."""

from __future__ import annotations

import runpy
import sys

from kumadp.controlplane import bootstrap_http
from kumadp.host.log import repeat_filter as repeats
from kumadp.host.log import throttle
from kumadp.relay import refusal

# Pauses between attempts to reach the control plane, and windows in which repeated log lines are suppressed.
PAUSES = (
    (bootstrap_http, "LONGEST_WAIT"),
    (repeats, "FIRST_WINDOW"),
    (repeats, "LONGEST_WINDOW"),
    (throttle, "FIRST_WAIT"),
    (throttle, "LONGEST_WAIT"),
    (refusal, "FIRST_WAIT"),
    (refusal, "LONGEST"),
    (refusal, "ACTIVE_LONGEST"),
)

if __name__ == "__main__":
    for module, name in PAUSES:
        setattr(module, name, getattr(module, name) / float(sys.argv[1]))
    sys.argv = sys.argv[4:]
    runpy.run_module("kumadp", run_name="__main__", alter_sys=True)
