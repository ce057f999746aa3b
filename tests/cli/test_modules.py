"""Commands that run modules of kumadp with this Python."""

from __future__ import annotations

import os
import subprocess
import sys

from kumadp.cli.modules import _ROOT, environment, shell_command


def test_the_environment_leads_to_this_kumadp() -> None:
    assert environment({"HOME": "/h"}) == {"HOME": "/h", "PYTHONPATH": str(_ROOT)}
    assert environment({"PYTHONPATH": "/other"})["PYTHONPATH"] == os.pathsep.join((str(_ROOT), "/other"))
    assert set(environment()) == {*os.environ, "PYTHONPATH"}


def test_the_command_runs_in_a_shell() -> None:
    command = shell_command("kumadp")
    assert command.endswith(f"{sys.executable} -m kumadp")
    done = subprocess.run(f"{command} version", shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
