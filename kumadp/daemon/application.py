"""The application that kumadp runs as its child (``kumadp run ... -- CMD``): when it starts, how it is told to end.

It is up to the application when everything ends: its end is ours, and its exit code too. When we are told to stop,
inbound drains first, then the application gets the signal; Envoy, its outbound listeners and DNS stay until it has
ended. Where the sidecar itself cannot go on, ``--on-sidecar-end`` says what becomes of the application.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING, Literal

from kumadp.core.phases import Phase
from kumadp.daemon.driven import Outcome
from kumadp.daemon.loop import PartEnded, WorkDone
from kumadp.errors import ExitCode, SpawnError
from kumadp.process.application import ApplicationProcess, HandedProcess, exit_code_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from kumadp.core.context import Run

log = logging.getLogger("kumadp.daemon")

NAME = "application"
# Ours, as without an application: SIGUSR1 re-executes, SIGUSR2 drains inbound (Kubernetes' preStop).
_FORWARDED = frozenset({signal.SIGHUP})
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


class Application:
    """The application of one run; does nothing where there is none (``run.command_line`` is empty)."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._argv = run.command_line
        self._process: ApplicationProcess | None = None
        self._stop_signal = signal.SIGTERM
        self._deadline: float | None = None
        self._started: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        if self._argv:
            run.status.moved.append(self._moved)
            run.status.asked[NAME] = self._told

    @property
    def runs(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.state == "runs"

    @property
    def state(self) -> Literal["none", "runs", "ended"]:
        """Whether there is one: it has been started, and has ended or not."""
        if self._process is None:
            return "none"
        return "ended" if self._process.status is not None else "runs"

    def drained_as(self, *, failed: bool) -> Literal["none", "runs", "ended"]:
        """Its state for the plan of a drain; ``failed``: one that may live on is none of the drain's."""
        return "none" if self.runs and failed and self._may_live_on else self.state

    @property
    def _stops(self) -> bool:
        """Whether a stop came first, which drains an Envoy that was left."""
        return self._run.status.phase not in {Phase.STARTING, Phase.READY}

    @property
    def _may_live_on(self) -> bool:
        return self._run.settings.on_sidecar_end == "leave"

    def begin(self, handed: HandedProcess | None) -> None:
        """Go on with the one that a kumadp before us started, or start it now where it waits for nothing."""
        if handed is not None:
            self._watch(ApplicationProcess(handed.pid, handed.start_time))
        elif self._argv and self._run.settings.application_start == "at-once" and not self._stops:
            self._start()

    def handed(self) -> HandedProcess | None:
        """What the program that takes our place has to know of it."""
        return self._process.handed() if self._process is not None and self.runs else None

    def takes(self, number: int) -> bool:
        """Whether a signal is the application's, which has it then; one that stops us it gets once inbound drained."""
        if not self.runs or self._process is None:
            return False
        if number in _STOPS:
            if self._deadline is None and self._run.status.phase in {Phase.STARTING, Phase.READY}:
                self._stop_signal = signal.Signals(number)
            return False
        if number not in _FORWARDED:
            return False
        log.info("%s is for the application", signal.Signals(number).name)
        self._process.send_signal(number)
        return True

    async def end(self) -> None:
        """Have it end: the signal that stopped us, and SIGKILL for its group after ``--application-grace``."""
        if self._process is None or not self.runs:
            return
        loop, grace = asyncio.get_running_loop(), self._run.settings.application_grace
        if self._deadline is None:
            self._deadline = loop.time() + grace
            log.info("the application gets %s and has %.1f s", self._stop_signal.name, grace)
            self._process.send_signal(self._stop_signal)
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._process.wait()
        except TimeoutError:
            log.warning("the application did not end within %.1f s and is killed", grace)
            self._process.kill()
            await self._process.wait()

    async def stop(self, outcome: Outcome) -> None:
        """The sidecar ends: so does the application, but where that is a failure and it may live on."""
        if outcome.code is ExitCode.OK or not self._may_live_on:
            await self.end()

    def kill(self) -> None:
        """Kill it at once, with its group."""
        if self._process is not None:
            self._process.kill()

    async def conclude(self, outcome: Outcome) -> Outcome:
        """The outcome of both, once both have ended: the application's, but for a failure of ours that it died of."""
        process = self._process
        if process is None or outcome.code is ExitCode.FORCED:
            return outcome
        if process.status is None:
            log.error("exit code %d: %s; the application lives on without a sidecar", outcome.code, outcome.why)
            await self._outlive(process)
        elif outcome.code is not ExitCode.OK:
            return outcome
        status = await process.wait()
        return Outcome(exit_code_of(status), f"the application ended with {status.describe()}; {outcome.why}")

    async def _outlive(self, process: ApplicationProcess) -> None:
        """Hand every signal on until it has ended."""
        loop = asyncio.get_running_loop()
        numbers = _STOPS | _FORWARDED | {signal.SIGUSR1, signal.SIGUSR2}
        for number in numbers:
            loop.add_signal_handler(number, process.send_signal, number)
        await process.wait()

    def _moved(self, phase: Phase, _why: str) -> None:
        if phase is Phase.READY and self._process is None:
            self._start()

    def _start(self) -> None:
        run = self._run
        try:
            process = ApplicationProcess.spawn(self._argv, run.children_environment, dies_with_us=not self._may_live_on)
        except SpawnError as error:
            run.post(PartEnded(NAME, error))
            return
        # The name alone: what comes after it may be secret.
        log.info("the application (%s) is started, pid %d", self._argv[0], process.pid)
        self._watch(process)

    def _watch(self, process: ApplicationProcess) -> None:
        self._process = process
        self._started = time.time() - process.age
        self._spawn(self._tell_end(process))

    async def _tell_end(self, process: ApplicationProcess) -> None:
        status = await process.wait()
        why = f"the application ended with {status.describe()}"
        log.info("%s", why)
        self._run.post(WorkDone(why))

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=NAME)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _told(self) -> dict[str, object]:
        process = self._process
        status = process.status if process is not None else None
        state = "WAITING" if process is None else "RUNNING" if status is None else "ENDED"
        return {
            "state": state,
            "pid": process.pid if process is not None and status is None else None,
            "started": self._started,
            "ended": status.describe() if status is not None else "",
        }
