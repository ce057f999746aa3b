"""Signals that arrive before the run loop: of a program that takes another's place none is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from kumadp.host.reexec.handover import HELD_SIGNALS
from kumadp.host.reexec.interim_responder import VARIABLE

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
# Stops come where Python drops what is raised: `importlib` runs such callbacks at each import.
EARLY = textwrap.dedent("""
    import os, signal, sys, time
    from kumadp.host import early_signals as early
    early.LIMIT = 0.1
    stops = int(sys.argv.pop())
    class Noisy:
        def __del__(self):
            for _ in range(stops):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)
    early.hold_early_signals()
    noisy = Noisy()
    del noisy
    print("it goes on", flush=True)
    if sys.argv.pop() == "loop":
        print([number.name for number in early.early_stops()], flush=True)
    for _ in range(3):
        time.sleep(0.1)
    print("and on")
""")


def started(*arguments: str) -> tuple[int, list[str], str]:
    actual = subprocess.run(
        [sys.executable, "-c", EARLY, *arguments], capture_output=True, text=True, check=False, timeout=30
    )
    return actual.returncode, actual.stdout.splitlines(), actual.stderr


def test_no_signal_that_the_previous_program_blocked_is_lost() -> None:
    held = sorted(int(number) for number in HELD_SIGNALS)
    actual = subprocess.run(
        [sys.executable, "-c", HELD, json.dumps(held)],
        env={**os.environ, VARIABLE: "-1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=30,
    )
    assert json.loads(actual.stdout.splitlines()[-1]) == held


def test_an_early_stop_is_held_for_the_run_loop() -> None:
    assert started("loop", "1") == (0, ["it goes on", "['SIGTERM']", "and on"], "")


def test_an_early_stop_ends_it_where_the_run_loop_is_not_reached() -> None:
    assert started("no loop", "1") == (0, ["it goes on"], "stopped by SIGTERM before anything was started\n")


def test_a_second_early_stop_ends_it_at_once() -> None:
    assert started("no loop", "2") == (0, [], "stopped by SIGTERM before anything was started\n")
