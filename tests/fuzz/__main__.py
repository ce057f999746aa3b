"""``python -m tests.fuzz [NAME ...] [--inputs N | --seconds S] [--seed N]``: run targets by hand, all by default."""

from __future__ import annotations

import argparse
import logging
import sys

from tests.fuzz.catalogue import TARGETS
from tests.fuzz.runner import Found, Runner


def main() -> int:
    """Run the targets one after the other; returns 1 if an input was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--inputs", type=int, default=sys.maxsize)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measured", type=int, default=64, help="one input in so many is measured")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    code = 0
    for name in arguments.names or TARGETS:
        runner = Runner(TARGETS[name], seed=arguments.seed, measured=arguments.measured)
        try:
            shown = f"{name}: {runner.run(inputs=arguments.inputs, seconds=arguments.seconds)}"
        except Found as found:
            code, shown = 1, str(found)
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
