"""One child process: spawned through the exec helper, watched by its pidfd, signalled by its pidfd."""

from __future__ import annotations

import asyncio
import os
import signal
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

    def __init__(self, command: Command, process: subprocess.Popen[bytes], pump: LogPump) -> None:
        loop = asyncio.get_running_loop()
        self.command = command
        self.pid = process.pid
        self.started_at = loop.time()
        self._process = process
        self._pump = pump
        self._ended: asyncio.Future[ExitStatus] = loop.create_future()
        self._pidfd = os.pidfd_open(process.pid)
        loop.add_reader(self._pidfd, self._reap)

    @classmethod
    async def spawn(cls, command: Command) -> Child:
        """Start the process in a session of its own, its output going to the log.

        From the main thread only: PR_SET_PDEATHSIG fires when the *thread* that forked ends. Raises SpawnError.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children are spawned from the main thread only")
        program = command.argv[0]
        if not os.access(program, os.X_OK):
            raise SpawnError(f"{program} cannot be run", "check that it exists and is executable")
        number = signal.SIGKILL if command.on_parent_death == "kill" else 0
        helper = (sys.executable, "-I", "-S", str(HELPER), str(int(number)), str(os.getpid()))
        read, write = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - returns once the helper runs; the helper does what can stall
                (*helper, *command.argv),
                env=dict(command.environment),
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                start_new_session=True,
            )
        except OSError as error:
            os.close(read)
            raise SpawnError(f"{program} cannot be started: {error.strerror}") from error
        finally:
            os.close(write)
        return cls(command, process, LogPump(command.name, read))

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
        """TERM, then KILL after ``grace`` seconds; returns how it ended."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            return await self.wait()

    def tail(self, lines: int = 20) -> list[str]:
        """Its last lines of output."""
        return self._pump.tail(lines)

    def _reap(self) -> None:
        code = self._process.poll()
        if code is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pump.drain()
        status = ExitStatus(None, -code) if code < 0 else ExitStatus(code, None)
        if not self._ended.done():
            self._ended.set_result(status)
