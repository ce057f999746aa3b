"""The name by which Kuma's injector signals this process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from pathlib import Path
from kumadp.host.process_name import set_process_name
set_process_name("kuma-dp-with-a-long-name")
print(Path("/proc/self/comm").read_text().strip())
"""


def test_the_name_has_at_most_15_bytes() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "kuma-dp-with-a-\n"
