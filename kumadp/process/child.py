"""One child process: spawned through the exec helper, watched and signalled through its pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from kumadp.errors import SpawnError
from kumadp.host.cgroup import OomKills, oom_file
from kumadp.host.process_identity import ProcessIdentity, identity_of, start_time_of
from kumadp.process.exit_status import ExitStatus
from kumadp.process.fifo import name_fifo, open_fifo, remove_fifo
from kumadp.process.launch import Launched, can_run, cannot_start, gains_rights, launch
from kumadp.process.log_pump import LogPump, OutputState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    OnDeath = Callable[["Child", "ExitStatus"], None]

log = logging.getLogger("kumadp.process")

# A line of output that is older than this may have nothing to do with the end (seconds).
_RECENT = 5.0

OnParentDeath = Literal["kill", "keep"]


def _ignore_death(_child: Child, _status: ExitStatus) -> None:
    """Do nothing."""


class Command(Struct, frozen=True):
    """What to run. ``argv[0]`` is an absolute path; ``name`` is used in log lines.

    ``fifo`` is for a child that may outlive us: its output goes not to a pipe but to a FIFO next to that path, with the
    child's pid in its name (`Child.fifo`), which a later kumadp can read. The program never waits for a reader, and
    never gets a broken pipe. With ``lock_death_signal`` the program cannot set another ``on_parent_death`` for itself,
    as Envoy does if hot restart is on. ``on_death`` is for `Child.watch_death`.
    """

    argv: tuple[str, ...]
    name: str
    environment: Mapping[str, str]
    on_parent_death: OnParentDeath = "kill"
    fifo: Path | None = None
    lock_death_signal: bool = False
    on_death: OnDeath = _ignore_death


class HandedChild(msgspec.Struct, frozen=True):
    """A child, for the program that replaces us by execve(2): `Child.handed`, `Child.from_handed`."""

    name: str
    pid: int
    start_time: int
    ours: bool
    output: int
    fifo: str
    output_state: OutputState = msgspec.field(name="heard")


class RunningProcess(Struct, frozen=True):
    """A process to adopt, by its pid and its start time in clock ticks.

    ``ours``: it is a child of this process, started before an execve(2). ``output`` is the read end of its output;
    without it ``fifo`` is opened.
    """

    name: str
    pid: int
    start_time: int
    ours: bool = False
    output: int | None = None
    fifo: Path | None = None
    output_state: OutputState | None = None


class Child:
    """A running process. Only this class signals it, and only through its pidfd, so a recycled pid is never hit.

    ``ours``: it is a child of this process, and was not left by another kumadp: such a process cannot be reaped, so its
    exit status stays unknown.
    """

    def __init__(
        self,
        name: str,
        process: Launched,
        pump: LogPump,
        *,
        ours: bool = True,
        fifo: Path | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.pid = process.pid
        self.start_time = process.start_time
        self.ours = ours
        self.fifo = fifo
        self._on_death: OnDeath = _ignore_death
        self.planned_from = math.inf
        """Monotonic time from which an end is planned, unless it fails; a clean exit may come earlier. Without a plan:
        never."""
        self._stop_requested = False
        self._kill_reason = ""
        self.started_at = loop.time() - ProcessIdentity(process.pid, process.start_time, 0, "").age
        self._pump = pump
        self._wait_for_code = process.wait
        # Kills are counted from its start on.
        _oom_kills()
        self._ended: asyncio.Future[ExitStatus] = loop.create_future()
        self._pidfd = process.pidfd
        loop.add_reader(process.pidfd, self._reap)

    @classmethod
    async def spawn(cls, command: Command) -> Child:
        """Start the process in a new session, with its output in the log.

        From the main thread only: PR_SET_PDEATHSIG fires when the *thread* that forked ends. Nothing is awaited in
        here, so that a cancellation cannot lose a started process. Raises SpawnError.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("children are spawned from the main thread only")
        program = command.argv[0]
        if not can_run(program):
            raise SpawnError(f"{program} cannot be run", "check that it exists and is executable")
        if command.on_parent_death == "kill" and gains_rights(program):
            log.warning("%s gains rights when it starts: it will not end when kumadp is killed (prctl(2))", program)
        try:
            number = signal.SIGKILL if command.on_parent_death == "kill" else 0
            process, output = launch(
                command.argv,
                number,
                command.environment,
                fifo=command.fifo,
                lock_death_signal=command.lock_death_signal,
            )
        except OSError as error:
            raise cannot_start(program, error) from error
        pump = LogPump(command.name, output, lossy=command.fifo is not None)
        fifo = name_fifo(command.fifo, process.pid) if command.fifo is not None else None
        child = cls(command.name, process, pump, fifo=fifo)
        child.watch_death(command.on_death)
        return child

    @classmethod
    def adopt(cls, running: RunningProcess) -> Child:
        """Adopt a running process. Raises ProcessLookupError if that process (by its start time) has ended."""
        pid, output, fifo = running.pid, running.output, running.fifo
        with contextlib.ExitStack() as undo:
            if output is not None and output >= 0:
                undo.callback(os.close, output)
            pidfd = os.pidfd_open(pid)
            undo.callback(os.close, pidfd)
            # After pidfd_open: a process with this start time is that of the pidfd. A child of ours may be a zombie.
            if start_time_of(pid) != running.start_time or not (running.ours or identity_of(pid)):
                raise ProcessLookupError(f"process {pid} has ended")
            undo.pop_all()
        if output is None:
            output = open_fifo(fifo) if fifo is not None else -1
        pump = LogPump(running.name, output, lossy=fifo is not None, state=running.output_state)
        process = Launched(pid, running.start_time, pidfd, lambda: _exit_code(pid))
        return cls(running.name, process, pump, ours=running.ours, fifo=fifo)

    @classmethod
    def from_handed(cls, handed: HandedChild) -> Child:
        """Continue with a child after execve(2); raises ProcessLookupError if it has ended."""
        fifo = Path(handed.fifo) if handed.fifo else None
        started = (handed.name, handed.pid, handed.start_time, handed.ours)
        return cls.adopt(RunningProcess(*started, handed.output, fifo, handed.output_state))

    def handed(self) -> HandedChild:
        """Return this child for the program that replaces us by execve(2); ``output`` must stay open then."""
        fifo = str(self.fifo) if self.fifo is not None else ""
        return HandedChild(
            self.name, self.pid, self.start_time, self.ours, self._pump.descriptor, fifo, self._pump.state()
        )

    async def wait(self) -> ExitStatus:
        """Wait for its end and return its exit status; its last output has been read then."""
        return await asyncio.shield(self._ended)

    @property
    def ended(self) -> bool:
        """Whether it has been reaped."""
        return self._ended.done()

    def send_signal(self, number: int) -> bool:
        """Send a signal; return False if it has ended already."""
        if self.ended:
            return False
        self._stop_requested = self._stop_requested or number in {signal.SIGTERM, signal.SIGKILL}
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def kill_with_reason(self, why: str) -> bool:
        """Send KILL because of a fault of the child; ``why`` becomes part of its exit status, and may be empty.

        Returns False if it has ended, or was signalled to stop before.
        """
        if self.ended or self._stop_requested:
            return False
        self._kill_reason = why
        return self.send_signal(signal.SIGKILL)

    async def stop(self, grace: float) -> ExitStatus:
        """Send TERM, and KILL after ``grace`` seconds or at once if cancelled; return the exit status."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                return await self.wait()
        except TimeoutError:
            log.warning("%s did not end within %.1f s of SIGTERM and is killed", self.name, grace)
            self.send_signal(signal.SIGKILL)
            return await self.wait()
        except asyncio.CancelledError:
            self.send_signal(signal.SIGKILL)
            raise

    def watch_death(self, on_death: OnDeath) -> None:
        """Call ``on_death`` at an unexpected end: neither requested, except by `kill_with_reason`, nor planned."""
        self._on_death = on_death

    def set_log_fields(self, **fields: object) -> None:
        """Log each further line of output with these fields."""
        self._pump.fields = fields

    def watch_output(self, on_line: Callable[[str], object]) -> None:
        """Call ``on_line`` with each further line of output."""
        self._pump.watch(on_line)

    def tail(self, lines: int = 20) -> list[str]:
        """Return its last lines of output."""
        return self._pump.tail(lines)

    def last_line(self) -> str:
        """Return "its last line: ...", with its age unless it is recent; empty if there is none."""
        text, age = next(iter(self.tail(1)), ""), self._pump.idle
        if not text:
            return ""
        if age is None or age < _RECENT:
            return f"its last line: {text}"
        return f"its last line, {age:.0f} s before: {text}"

    def _reap(self) -> None:
        status = ExitStatus(None, None)
        if self.ours:
            # A wrapper script may leave its program behind, which would hold the ports. Until it is reaped, the child
            # keeps the number of its process group, so no other group is hit.
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
            code = self._wait_for_code()
            status = ExitStatus(None, -code, self._killed_for_memory(-code)) if code < 0 else ExitStatus(code, None)
            if code == -signal.SIGKILL:
                status = replace(status, why=self._kill_reason)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pump.drain()
        if self.fifo is not None:
            remove_fifo(self.fifo)
        if not self._was_planned(status):
            self._on_death(self, status)
        if not self._ended.done():
            self._ended.set_result(status)

    def _was_planned(self, status: ExitStatus) -> bool:
        if self._stop_requested:
            return not self._kill_reason
        if status.clean:
            return self.planned_from < math.inf
        unknown = status.code is None and status.signal is None
        return unknown and time.monotonic() >= self.planned_from

    def _killed_for_memory(self, number: int) -> tuple[str, int, int] | None:
        if number != signal.SIGKILL or self._stop_requested:
            return None
        counts = _oom_kills().new_kills()
        return (str(_oom_kills().file), *counts) if counts is not None else None


@functools.cache
def _oom_kills() -> OomKills:
    return OomKills(oom_file())


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
