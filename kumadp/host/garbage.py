"""Python's cycle collector in a process that imports much at its start, and then lives for months.

A collection walks over all objects there are. By default one of 700 new objects begins each, hundreds until Envoy
serves, for cycles that hardly exist then.
"""

from __future__ import annotations

import gc

# New objects before a collection: a start has ten times as many, and as much garbage takes 1 MB.
THRESHOLD = 10_000


def collect_rarely() -> None:
    """Collect less often from now on; before anything is imported."""
    gc.set_threshold(THRESHOLD, *gc.get_threshold()[1:])


def keep_present_objects() -> None:
    """Leave the objects of now out of all later collections: modules and classes stay for as long as the process."""
    gc.freeze()
