"""A core dump of kumadp would hold keys: there is none; its children have the limit that kumadp was given."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.support.loaded_rig import LoadedRig

pytestmark = pytest.mark.process

GIVEN = 1 << 20


def soft(pid: int) -> int:
    return resource.prlimit(pid, resource.RLIMIT_CORE)[0]


def test_kumadp_leaves_none_and_envoy_may(loaded_rig: LoadedRig) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard != resource.RLIM_INFINITY and hard < GIVEN:
        pytest.skip("no core dump is allowed here")
    with loaded_rig.up(prefix=("prlimit", f"--core={GIVEN}:")) as daemon:
        assert (soft(daemon.pid), soft(loaded_rig.the_envoy().pid)) == (0, GIVEN)
        loaded_rig.reexec(daemon)
        assert (soft(daemon.pid), soft(loaded_rig.kill_envoy(daemon).pid)) == (0, GIVEN)
        # Where the next program does not come, the old one is as safe as before.
        assert psutil.Process(daemon.pid).name() == "kuma-dp"


def test_a_program_that_cannot_be_replaced_stays_without() -> None:
    program = """
import os, resource
from kumadp.errors import HandoverFailed
from kumadp.host import core_dumps as cores
from kumadp.host.reexec import handover
cores.disable_core_dumps()
try:
    handover.become(handover.collect({}, ()), os.environ, lambda: None, ("/none",))
except HandoverFailed:
    print(resource.getrlimit(resource.RLIMIT_CORE)[0], cores.child_core_limit())
"""
    previous = resource.getrlimit(resource.RLIMIT_CORE)[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", str(previous)]
