"""Signals that arrive before the run loop: of a program that takes another's place none is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from kumadp.host.handover import HELD_SIGNALS
from kumadp.host.meanwhile import VARIABLE

pytestmark = pytest.mark.process

# What became this program holds these signals back, and each of them has come.
HELD = textwrap.dedent("""
    import json, os, signal, sys
    held = json.loads(sys.argv.pop())
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    for number in held:
        os.kill(os.getpid(), number)
    from kumadp.cli.main import main
    sys.argv = ["kumadp", "run", "--help"]
    try:
        main()
    except SystemExit:
        print(json.dumps(sorted(signal.sigpending())))
""")
# It comes where Python drops what is raised: `importlib` runs such callbacks at each import.
UNRAISABLE = textwrap.dedent("""
    import os, signal, time
    from kumadp.host.early import take_early_signals
    class Noisy:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
    take_early_signals()
    noisy = Noisy()
    del noisy
    print("it goes on")
""")


def test_no_signal_that_a_program_before_held_back_is_lost() -> None:
    held = sorted(int(number) for number in HELD_SIGNALS)
    found = subprocess.run(
        [sys.executable, "-c", HELD, json.dumps(held)],
        env={**os.environ, VARIABLE: "-1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=30,
    )
    assert json.loads(found.stdout.splitlines()[-1]) == held


def test_an_early_stop_ends_it_wherever_it_comes() -> None:
    found = subprocess.run([sys.executable, "-c", UNRAISABLE], capture_output=True, text=True, check=False, timeout=30)
    assert (found.returncode, found.stdout) == (0, "")
    assert "stopped by SIGTERM before anything was started" in found.stderr
