"""The process of the application, if kumadp started it (``kumadp run -- CMD``).

Unlike other children it inherits standard input, output and error, and the terminal; it has a separate process group,
like a job of a shell, so that only it gets Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import msgspec

from kumadp.errors import SpawnError
from kumadp.host import programs
from kumadp.host.process_identity import ProcessIdentity, start_time_of
from kumadp.process.exit_status import ExitStatus
from kumadp.process.launch import cannot_start, tied_to_parent

if TYPE_CHECKING:
    from collections.abc import Mapping


class HandedProcess(msgspec.Struct, frozen=True):
    """The process, for the program that replaces us by execve(2)."""

    pid: int
    start_time: int


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """Return the program that a shell would run for this word; raises SpawnError if there is none."""
    program = programs.find_program(name, environ.get("PATH", os.defpath))
    if program is None:
        raise SpawnError(f"{name} cannot be run", "after -- comes a program on PATH, or a path of one")
    return program


class ApplicationProcess:
    """A running application. It is signalled through its pidfd, and killed with its process group."""

    def __init__(self, pid: int, start_time: int) -> None:
        """Watch a child of this process; raises ProcessLookupError if the pid is another process by now."""
        self.pid = pid
        self.start_time = start_time
        self._pidfd = os.pidfd_open(pid)
        if start_time_of(pid) != start_time:
            os.close(self._pidfd)
            raise ProcessLookupError(f"process {pid} has ended")
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ExitStatus] = loop.create_future()
        loop.add_reader(self._pidfd, self._reap)

    @classmethod
    def spawn(cls, argv: tuple[str, ...], environment: Mapping[str, str], *, dies_with_us: bool) -> ApplicationProcess:
        """Start the application; ``dies_with_us``: the kernel sends it SIGTERM if we are killed. Raises SpawnError.

        From the main thread only, as with `Child.spawn`.
        """
        program = find_program(argv[0], environment)
        number = signal.SIGTERM if dies_with_us else 0
        # The helper passes argv unchanged, except for the program's path.
        command = tied_to_parent((program, *argv[1:]), number, environment)
        try:
            process = subprocess.Popen(command, env=dict(environment), process_group=0)
        except OSError as error:
            raise cannot_start(argv[0], error) from error
        try:
            application = cls(process.pid, start_time_of(process.pid) or 0)
        except OSError as error:
            # It cannot be watched: there is no free descriptor.
            process.kill()
            process.wait()
            raise cannot_start(argv[0], error) from error
        if _terminal_of() == os.getpgrp():
            _give_terminal(process.pid)
        # We reap it ourselves, and it outlives this Popen object over execve(2).
        process.returncode = 0
        return application

    def handed(self) -> HandedProcess:
        """Return this process for the program that replaces us."""
        return HandedProcess(self.pid, self.start_time)

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return ProcessIdentity(self.pid, self.start_time, 0, "").age

    @property
    def status(self) -> ExitStatus | None:
        """Exit status; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> ExitStatus:
        """Wait for its end, and return its exit status."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Kill it and all processes of its group."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        if _terminal_of() == self.pid:
            _give_terminal(os.getpgrp())
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(ExitStatus(None, -code) if code < 0 else ExitStatus(code, None))


def exit_code_of(status: ExitStatus) -> int:
    """Return the exit code that a shell reports: its own, or 128 plus the signal that killed it."""
    return 128 + status.signal if status.signal is not None else status.code or 0


def _terminal_of() -> int:
    """Return the foreground process group of the terminal at standard input; 0 if there is no such terminal."""
    try:
        return os.tcgetpgrp(0)
    except OSError:
        return 0


def _give_terminal(group: int) -> None:
    # A background process is stopped by SIGTTOU for this (tcsetpgrp(3)), unless the signal is blocked.
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
