"""Run as ``python -I -S exec_helper.py SIGNAL PARENT LOCALE PROGRAM ARG...``: becomes PROGRAM, tied to its parent.

Sets PR_SET_PDEATHSIG (prctl(2)), which a child must do for itself, and which survives execve(2). LOCALE 0 means that
the environment given has no LC_CTYPE. It stands alone: it imports nothing of ours, so that it starts in milliseconds.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
# Of Linux, on every architecture; the signal module would double the time that this takes to start.
SIGPIPE, SIGXFSZ = 13, 25
SIG_DFL = None


def main() -> None:
    """Tie this process to its parent and become the program; exit code 127 when that cannot be done."""
    number, parent, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[4]
    libc = ctypes.CDLL(None)
    if number:
        libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        # The parent may have died before prctl: then no signal would ever come.
        if os.getppid() != parent:
            sys.exit(127)
    # Python ignores these two for itself, and execve(2) would hand that on.
    for ignored in (SIGPIPE, SIGXFSZ):
        libc.signal(ignored, SIG_DFL)
    # Python sets it in a C locale (PEP 538), which is nobody's wish for the program.
    if sys.argv[3] == "0":
        os.environ.pop("LC_CTYPE", None)
    try:
        os.execv(program, sys.argv[4:])  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot run {program}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
