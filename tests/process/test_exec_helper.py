"""The helper that ties a child to its parent and executes its program."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kumadp.process import exec_helper

pytestmark = pytest.mark.process

HELPER = Path(exec_helper.__file__)
# Prints its parent death signal, its soft limits, its ignored signals and blocked ones.
PROGRAM = """
import ctypes, os, resource
number = ctypes.c_int()
ctypes.CDLL(None).prctl(1, PDEATHSIG, 0, 0, 0) if PDEATHSIG else None
ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0)
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(number.value, resource.getrlimit(resource.RLIMIT_CORE)[0], resource.getrlimit(resource.RLIMIT_NOFILE)[0])
print(int(status["SigBlk"], 16), "LC_CTYPE" in os.environ)
"""


def run(
    *argv: str, signal_number: int = 0, parent: int | None = None, locale: str = "0", lock: str = "0",
    core: str = "", files: str = "", environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    options = (str(signal_number), str(parent or os.getpid()), locale, lock, core, files)
    command = (sys.executable, "-I", "-S", str(HELPER), *options, *argv)
    return subprocess.run(command, capture_output=True, text=True, env=environment or {}, timeout=60, check=False)


def report(own_signal: int = 0) -> tuple[str, ...]:
    return (sys.executable, "-c", PROGRAM.replace("PDEATHSIG", str(own_signal)))


def test_the_signal_and_the_limits_are_set() -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    done = run(*report(), signal_number=signal.SIGKILL, core="0", files="64")
    assert done.stdout.splitlines()[0] == "9 0 64"
    unchanged = run(*report(), core="", files="")
    assert unchanged.stdout.splitlines()[0].split()[::2] == ["0", str(files)]


def test_blocked_signals_are_unblocked() -> None:
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        done = run(*report())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    assert done.stdout.splitlines()[1].split()[0] == "0"


@pytest.mark.parametrize(("locale", "kept"), [("0", "False"), ("1", "True")])
def test_the_locale_that_python_sets_is_removed_unless_it_was_given(locale: str, kept: str) -> None:
    # The program is a shell: Python would set LC_CTYPE again.
    done = run("/bin/sh", "-c", 'echo "${LC_CTYPE+True}"', locale=locale, environment={"LC_CTYPE": "C.UTF-8"})
    assert done.stdout.strip() == ("True" if kept == "True" else "")


def test_a_locked_death_signal_stays() -> None:
    done = run(*report(own_signal=signal.SIGTERM), signal_number=signal.SIGKILL, lock="1")
    if "no seccomp here" in done.stderr:
        pytest.skip("seccomp filters are not available")
    assert done.stdout.split()[0] == "9"
    assert run(*report(own_signal=signal.SIGTERM), signal_number=signal.SIGKILL).stdout.split()[0] == "15"


def test_a_parent_that_has_died_and_a_missing_program_are_failures() -> None:
    # Process 1 is not the parent of this one's children.
    orphan = run("/bin/echo", "ran", signal_number=signal.SIGKILL, parent=1)
    assert (orphan.returncode, orphan.stdout) == (127, "")
    missing = run("/none/envoy")
    assert (missing.returncode, missing.stderr) == (127, "cannot run /none/envoy: No such file or directory\n")
