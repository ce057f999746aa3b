"""Runs kumadp with shorter pauses while a control plane is away, and in its log: ``hurried.py 60 python -m kumadp``."""

from __future__ import annotations

import runpy
import sys

from kumadp.controlplane import client
from kumadp.host.log import repeats as fold
from kumadp.host.log import throttle as sparse
from kumadp.relay import refusal

# What time passes by while a control plane is away: pauses between attempts, and how long a line that repeats waits.
PAUSES = (
    (client, "LONGEST_WAIT"),
    (fold, "FIRST_WINDOW"),
    (fold, "LONGEST_WINDOW"),
    (sparse, "FIRST_WAIT"),
    (sparse, "LONGEST_WAIT"),
    (refusal, "FIRST_WAIT"),
    (refusal, "LONGEST"),
    (refusal, "ACTIVE_LONGEST"),
)

if __name__ == "__main__":
    for module, name in PAUSES:
        setattr(module, name, getattr(module, name) / float(sys.argv[1]))
    sys.argv = sys.argv[4:]
    runpy.run_module("kumadp", run_name="__main__", alter_sys=True)
