"""Limits of descriptors: kumadp takes what it may, its children have what it was given."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kumadp.host import descriptors
from kumadp.host.process_identity import identity_of, start_time_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.loaded_rig import LoadedRig

GIVEN, HARD = 700, 1500


def limits(pid: int) -> tuple[int, int]:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)


@pytest.mark.process
def test_the_soft_limit_is_raised_and_raised_again_after_a_reexecution(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up(prefix=("prlimit", f"--nofile={GIVEN}:{HARD}")) as daemon:
        assert limits(daemon.pid) == (HARD, HARD)
        loaded_rig.reexec(daemon)
        assert limits(daemon.pid) == (HARD, HARD)


# Envoy 1.40 raises its own.
PROGRAM = """
import os, subprocess
from kumadp.errors import HandoverFailed
from kumadp.host import descriptors
from kumadp.host.reexec import handover
from kumadp.process.launch import tied_to_parent
descriptors.raise_limit()
print(descriptors.limit(), flush=True)
subprocess.run(tied_to_parent(("/bin/sh", "-c", "ulimit -n"), 0, os.environ), check=True)
try:
    handover.become(handover.collect({}, ()), os.environ, lambda: None, ("/none",))
except HandoverFailed:
    print(descriptors.limit(), flush=True)
descriptors.restore_limit()
print(descriptors.limit())
"""


def test_children_and_the_next_program_have_what_was_given() -> None:
    limited = ["prlimit", f"--nofile={GIVEN}:{HARD}", sys.executable, "-c", PROGRAM]
    done = subprocess.run(limited, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(HARD), str(GIVEN), str(HARD), str(GIVEN)]


def test_shares_shrink_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(limit: int, most: int, part: int) -> int:
        monkeypatch.setattr(descriptors, "limit", lambda: limit)
        return descriptors.share(most, part)

    assert share(-1, 256, 6) == 256
    assert share(65536, 256, 6) == 256
    assert share(1024, 256, 6) == 128
    assert share(256, 256, 6) == 21
    assert share(20, 256, 6) == 8
    assert share(20, 4, 6) == 4


def test_used_descriptors_are_counted() -> None:
    previous = descriptors.headroom()["used"]
    read, write = os.pipe()
    try:
        assert descriptors.headroom()["used"] == previous + 2
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("find", [identity_of, start_time_of])
def test_a_process_that_cannot_be_looked_at_is_not_gone(find: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    assert callable(find)
    assert find(os.getpid()) is not None
    monkeypatch.setattr("pathlib.Path.read_bytes", read)
    with pytest.raises(OSError, match="Too many open files"):
        find(os.getpid())
    monkeypatch.undo()
    assert find(1 << 22) is None
