"""One child process: spawned through the exec helper, watched by its pidfd, signalled by its pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kumadp.errors import SpawnError
from kumadp.process.logpump import LogPump

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("kumadp.process")

HELPER = Path(__file__).with_name("exec_helper.py")

OnParentDeath = Literal["kill", "keep"]


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: an exit code, or the number of the signal that killed it."""

    code: int | None
    signal: int | None

    @property
    def clean(self) -> bool:
        """Exit code 0."""
        return self.code == 0

    def describe(self) -> str:
        """``exit code 1`` or ``signal 9 (KILL)``."""
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            name = signal.Signals(self.signal).name.removeprefix("SIG")
        except ValueError:
            name = "unknown"
        return f"signal {self.signal} ({name})"


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. ``argv[0]`` is an absolute path; ``name`` is used in log lines."""

    argv: tuple[str, ...]
    name: str
    environment: Mapping[str, str]
    on_parent_death: OnParentDeath = "kill"


class Child:
    """A running process. Only this class signals it, and only through its pidfd, so a recycled pid is never hit."""

    def __init__(self, command: Command, process: subprocess.Popen[bytes], pidfd: int, pump: LogPump) -> None:
        loop = asyncio.get_running_loop()
        self.command = command
        self.pid = process.pid
        self.started_at = loop.time()
        self._process = process
        self._pump = pump
        self._ended: asyncio.Future[ExitStatus] = loop.create_future()
        self._pidfd = pidfd
        loop.add_reader(pidfd, self._reap)

    @classmethod
    async def spawn(cls, command: Command) -> Child:
        """Start the process in a session of its own, its output going to the log.

        From the main thread only: PR_SET_PDEATHSIG fires when the *thread* that forked ends. Nothing is awaited in
        here, so that being cancelled cannot lose a process that has been started. Raises SpawnError.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children are spawned from the main thread only")
        program = command.argv[0]
        if not _can_run(program):
            raise SpawnError(f"{program} cannot be run", "check that it exists and is executable")
        if command.on_parent_death == "kill" and _gains_rights(program):
            log.warning("%s gains rights when it starts: it will not end when kumadp is killed (prctl(2))", program)
        try:
            process, pidfd, output = _start(command)
        except OSError as error:
            raise SpawnError(f"{program} cannot be started: {error.strerror}") from error
        return cls(command, process, pidfd, LogPump(command.name, output))

    async def wait(self) -> ExitStatus:
        """How it ended, once it has; its last output has been read then."""
        return await asyncio.shield(self._ended)

    @property
    def ended(self) -> bool:
        """Whether it has been reaped."""
        return self._ended.done()

    def send_signal(self, number: int) -> bool:
        """Signal it; False when it is gone already."""
        if self.ended:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    async def stop(self, grace: float) -> ExitStatus:
        """TERM, then KILL after ``grace`` seconds, or at once when this is cancelled; returns how it ended."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            log.warning("%s did not end within %.1f s of SIGTERM and is killed", self.command.name, grace)
            self.send_signal(signal.SIGKILL)
            return await self.wait()
        except asyncio.CancelledError:
            self.send_signal(signal.SIGKILL)
            raise

    def tail(self, lines: int = 20) -> list[str]:
        """Its last lines of output."""
        return self._pump.tail(lines)

    def _reap(self) -> None:
        # A wrapper script leaves the program behind, which would hold the ports. Until it is reaped the child holds the
        # number of its process group, so nobody else is hit.
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self._process.wait()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pump.drain()
        status = ExitStatus(None, -code) if code < 0 else ExitStatus(code, None)
        if not self._ended.done():
            self._ended.set_result(status)


def _start(command: Command) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, its pidfd and the read end of its output; leaves nothing behind when it raises OSError."""
    number = signal.SIGKILL if command.on_parent_death == "kill" else 0
    locale = int("LC_CTYPE" in command.environment)
    helper = (sys.executable, "-I", "-S", str(HELPER), str(int(number)), str(os.getpid()), str(locale))
    with contextlib.ExitStack() as undo:
        read, write = os.pipe()
        undo.callback(os.close, read)
        try:
            process = subprocess.Popen(
                (*helper, *command.argv),
                env=dict(command.environment),
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                start_new_session=True,
            )
        finally:
            os.close(write)
        undo.callback(process.wait)
        undo.callback(process.kill)
        pidfd = os.pidfd_open(process.pid)
        undo.pop_all()
    return process, pidfd, read


def _can_run(program: str) -> bool:
    return Path(program).is_file() and os.access(program, os.X_OK)


def _gains_rights(program: str) -> bool:
    """Whether execve(2) gives it another user, group or capabilities, which undoes PR_SET_PDEATHSIG (prctl(2))."""
    with contextlib.suppress(OSError):
        found = Path(program).stat()
        other_user = found.st_mode & stat.S_ISUID and found.st_uid != os.geteuid()
        other_group = found.st_mode & stat.S_ISGID and found.st_gid != os.getegid()
        capable = os.geteuid() != 0 and "security.capability" in os.listxattr(program)
        return bool(other_user or other_group or capable)
    return False
