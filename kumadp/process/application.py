"""The workload's own process, where kumadp is what started it (``kumadp run -- CMD``).

Unlike a child of ours it keeps our standard input, output and error, and its terminal; it has a process group of its
own, as a shell gives a job, so that Ctrl-C is for it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import msgspec

from kumadp.errors import SpawnError
from kumadp.host.process_identity import ProcessIdentity, start_time_of
from kumadp.process.child import ExitStatus, cannot_start, tied_to_parent

if TYPE_CHECKING:
    from collections.abc import Mapping


class HandedProcess(msgspec.Struct, frozen=True):
    """The process as it is told to the program that takes our place by execve(2)."""

    pid: int
    start_time: int


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """The program that a shell would run for this word; raises SpawnError where there is none."""
    found = shutil.which(name, path=environ.get("PATH", os.defpath))
    if found is None:
        raise SpawnError(f"{name} cannot be run", "after -- comes a program on PATH, or a path of one")
    return found


class ApplicationProcess:
    """A running application. It is signalled through its pidfd, its group once it is killed."""

    def __init__(self, pid: int, start_time: int) -> None:
        """Watch a child of this process; raises ProcessLookupError when it is not that one any more."""
        self.pid = pid
        self.start_time = start_time
        self._pidfd = os.pidfd_open(pid)
        if start_time_of(pid) != start_time:
            os.close(self._pidfd)
            raise ProcessLookupError(f"process {pid} is gone")
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[ExitStatus] = loop.create_future()
        loop.add_reader(self._pidfd, self._reap)

    @classmethod
    def spawn(cls, argv: tuple[str, ...], environment: Mapping[str, str], *, dies_with_us: bool) -> ApplicationProcess:
        """Start it; ``dies_with_us``: the kernel sends it SIGTERM when this process is killed. Raises SpawnError.

        From the main thread only, as with `Child.spawn`.
        """
        program = find_program(argv[0], environment)
        number = signal.SIGTERM if dies_with_us else 0
        # The helper hands argv on as it is, but for the program's path.
        command = tied_to_parent((program, *argv[1:]), number, environment)
        try:
            process = subprocess.Popen(command, env=dict(environment), process_group=0)
        except OSError as error:
            raise cannot_start(argv[0], error) from error
        try:
            found = cls(process.pid, start_time_of(process.pid) or 0)
        except OSError as error:
            # It cannot be watched: no descriptor is left.
            process.kill()
            process.wait()
            raise cannot_start(argv[0], error) from error
        if _terminal_of() == os.getpgrp():
            _give_terminal(process.pid)
        # It is ours to reap, and outlives this object of Python's over execve(2).
        process.returncode = 0
        return found

    def handed(self) -> HandedProcess:
        """This process for the program that takes our place."""
        return HandedProcess(self.pid, self.start_time)

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return ProcessIdentity(self.pid, self.start_time, 0, "").age

    @property
    def status(self) -> ExitStatus | None:
        """How it ended; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> ExitStatus:
        """How it ended, once it has."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Signal it, where it still runs."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Kill it, with all that is in its process group."""
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
    """What a shell says of it: its exit code, or 128 and the signal that killed it."""
    return 128 + status.signal if status.signal is not None else status.code or 0


def _terminal_of() -> int:
    """The process group that has the terminal at standard input; 0 where that is none of ours."""
    try:
        return os.tcgetpgrp(0)
    except OSError:
        return 0


def _give_terminal(group: int) -> None:
    # Who is not in the foreground is stopped by SIGTTOU for this (tcsetpgrp(3)), unless the signal is blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
