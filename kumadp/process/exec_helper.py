"""Run as ``python -I -S exec_helper.py SIGNAL PARENT PROGRAM ARG...``: becomes PROGRAM, tied to its parent's life.

Sets PR_SET_PDEATHSIG (prctl(2)), which a child must do for itself, and which survives execve(2). It stands alone: it
imports nothing of ours, so that it starts in milliseconds.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent and become the program; exit code 127 when that cannot be done."""
    number, parent, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if number:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        # The parent may have died before prctl: then no signal would ever come.
        if os.getppid() != parent:
            sys.exit(127)
    try:
        os.execv(program, sys.argv[3:])  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot run {program}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
