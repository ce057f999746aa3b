"""The application that kumadp runs as its child (``kumadp run ... -- CMD``): when it starts, how it is ended.

It is up to the application when everything ends: its end is ours, and its exit code too. When kumadp is to stop,
inbound drains first, then the application gets the signal; Envoy, its outbound listeners and DNS stay until it has
ended. If the sidecar itself fails, ``--on-sidecar-end`` decides whether the application ends too.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import TYPE_CHECKING, Literal

from kumadp.core.events import ApplicationEnded, Outcome, PartEnded
from kumadp.core.part import Handed, Part
from kumadp.core.phases import Phase
from kumadp.errors import ExitCode, SpawnError
from kumadp.process.application import ApplicationProcess, HandedProcess, exit_code_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    import msgspec

    from kumadp.core.context import Context
    from kumadp.core.previous import Previous

log = logging.getLogger("kumadp.daemon")

NAME = "application"
# Ours, as without an application: SIGUSR1 re-executes, SIGUSR2 drains inbound (Kubernetes' preStop).
_FORWARDED = frozenset({signal.SIGHUP})
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})


class ApplicationPart(Part):
    """The application of one run; does nothing if there is none (an empty ``context.command_line``)."""

    name = NAME

    def __init__(self, context: Context) -> None:
        self._context = context
        self._argv = context.command_line
        self._process: ApplicationProcess | None = None
        self._stop_signal = signal.SIGTERM
        self._deadline: float | None = None
        self._started: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        if self._argv:
            context.status.moved.append(self._on_phase)

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
        """Return its state for the plan of a drain; ``failed``: an application that may live on is not drained."""
        return "none" if self.runs and failed and self._may_live_on else self.state

    @property
    def _stops(self) -> bool:
        """Whether a stop came first, which drains an Envoy that was left."""
        return self._context.status.phase not in {Phase.STARTING, Phase.READY}

    @property
    def _may_live_on(self) -> bool:
        return self._context.settings.on_sidecar_end == "leave"

    @classmethod
    def section_type(cls) -> type[msgspec.Struct]:
        """Return the type of its section of a handover."""
        return HandedProcess

    def adopt(self, previous: Previous) -> None:
        """Watch the application that a kumadp before this one in the same process started."""
        handed = previous.section(self.name, HandedProcess)
        if handed is not None:
            self._watch(ApplicationProcess(handed.pid, handed.start_time))

    def begin(self) -> None:
        """Start it now if it waits for nothing."""
        if (
            self._process is None
            and self._argv
            and self._context.settings.application_start == "at-once"
            and not self._stops
        ):
            self._start()

    def hand_over(self) -> Handed | None:
        """Return what the next program needs to watch it."""
        return Handed(self._process.handed()) if self._process is not None and self.runs else None

    def takes(self, number: int) -> bool:
        """Whether a signal is the application's, which has it then; one that stops us it gets once inbound drained."""
        if not self.runs or self._process is None:
            return False
        if number in _STOPS:
            if self._deadline is None and self._context.status.phase in {Phase.STARTING, Phase.READY}:
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
        loop, grace = asyncio.get_running_loop(), self._context.settings.application_grace
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

    def _on_phase(self, phase: Phase, _why: str) -> None:
        if phase is Phase.READY and self._process is None:
            self._start()

    def _start(self) -> None:
        context = self._context
        try:
            process = ApplicationProcess.spawn(
                self._argv, context.children_environment, dies_with_us=not self._may_live_on
            )
        except SpawnError as error:
            context.post(PartEnded(NAME, error))
            return
        # The name alone: what comes after it may be secret.
        log.info("the application (%s) is started, pid %d", self._argv[0], process.pid)
        self._watch(process)

    def _watch(self, process: ApplicationProcess) -> None:
        self._process = process
        self._started = time.time() - process.age
        self._spawn(self._report_end(process))

    async def _report_end(self, process: ApplicationProcess) -> None:
        status = await process.wait()
        why = f"the application ended with {status.describe()}"
        log.info("%s", why)
        self._context.post(ApplicationEnded(why))

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=NAME)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def status(self) -> Mapping[str, object]:
        """Return the section ``application``."""
        return {NAME: self._section()} if self._argv else {}

    def _section(self) -> dict[str, object]:
        process = self._process
        status = process.status if process is not None else None
        state = "WAITING" if process is None else "RUNNING" if status is None else "ENDED"
        return {
            "state": state,
            "pid": process.pid if process is not None and status is None else None,
            "started": self._started,
            "ended": status.describe() if status is not None else "",
        }
