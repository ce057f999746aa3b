"""Run as ``python -I -S exec_helper.py SIGNAL PARENT LOCALE LOCK CORE FILES PROGRAM ARG...``: becomes PROGRAM, tied to
its parent.

Sets PR_SET_PDEATHSIG (prctl(2)), which a child must do for itself, and which survives execve(2). LOCALE 0 means that
the given environment has no LC_CTYPE. LOCK 1 prevents the program from changing PR_SET_PDEATHSIG: Envoy sets SIGTERM
if hot restart is on (1.40, HotRestartImpl). CORE is the soft limit for its core dumps (bytes, -1: unlimited), FILES
that for its descriptors; empty: unchanged. It imports none of our modules, so that it starts in milliseconds.
"""

import ctypes
import os
import resource
import sys

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_SET_NO_NEW_PRIVS = 38
# Of Linux, on every architecture; the signal module would double the time that this takes to start.
SIGPIPE, SIGXFSZ = 13, 25
SIG_DFL = None
SIG_SETMASK = 2
# ``sigset_t`` of no signal; no libc has more bytes in it.
NO_SIGNALS = bytes(128)
# AUDIT_ARCH_* and the number of prctl(2).
PRCTL = {"x86_64": (0xC000003E, 157), "aarch64": (0xC00000B7, 167)}
# seccomp(2), classic BPF: load a word, jump if equal, return.
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO_0 = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16


class Instruction(ctypes.Structure):
    """``struct sock_filter``."""

    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Instruction)))


def lock_death_signal(libc: ctypes.CDLL) -> bool:
    """Make PR_SET_PDEATHSIG succeed without an effect; return False if that is not possible here."""
    numbers = PRCTL.get(os.uname().machine)
    if numbers is None:
        return False
    architecture, number = numbers
    code = (
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 0, 5, architecture),
        (LOAD, 0, 0, NUMBER),
        (JUMP_EQUAL, 0, 3, number),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_EQUAL, 0, 1, PR_SET_PDEATHSIG),
        (RETURN, 0, 0, ERRNO_0),
        (RETURN, 0, 0, ALLOW),
    )
    program = Program(len(code), (Instruction * len(code))(*(Instruction(*row) for row in code)))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0:
        return True
    # Without CAP_SYS_ADMIN this needs a process that can gain no more rights (seccomp(2)).
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def main() -> None:
    """Tie this process to its parent and execute the program; exit code 127 if that fails."""
    number, parent, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[7]
    libc = ctypes.CDLL(None)
    if number:
        libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        # If the parent died before prctl, there will never be a signal.
        if os.getppid() != parent:
            sys.exit(127)
    if sys.argv[4] == "1" and not lock_death_signal(libc):
        sys.stderr.write(f"{program} can change what happens to it when kumadp dies: no seccomp here\n")
    for kind, soft in ((resource.RLIMIT_CORE, sys.argv[5]), (resource.RLIMIT_NOFILE, sys.argv[6])):
        if soft:
            resource.setrlimit(kind, (int(soft), resource.getrlimit(kind)[1]))
    # kumadp blocks signals during a re-execution, and a program that is started then would never get them.
    libc.sigprocmask(SIG_SETMASK, NO_SIGNALS, None)
    # Python ignores these two, and ignored signals stay so over execve(2).
    for ignored in (SIGPIPE, SIGXFSZ):
        libc.signal(ignored, SIG_DFL)
    # Python sets it in a C locale (PEP 538), which is not meant for the program.
    if sys.argv[3] == "0":
        os.environ.pop("LC_CTYPE", None)
    try:
        os.execv(program, sys.argv[7:])  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot run {program}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
