"""When Python's cycle collector runs, in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import gc, json
from kumadp.host.garbage import THRESHOLD, collect_rarely, keep_present_objects
class Node: pass
def cycle():
    node = Node()
    node.itself = node
    return id(node)
before = gc.get_threshold()
collect_rarely()
after = gc.get_threshold()
gc.collect()
gc.disable()
keep_present_objects()
frozen = gc.get_freeze_count()
cycle()
found = gc.collect()
print(json.dumps([before[1:] == after[1:], after[0] == THRESHOLD, frozen > 1000, found >= 1]))
"""


def test_it_runs_rarely_and_leaves_out_what_is_there() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, True, True, True]
