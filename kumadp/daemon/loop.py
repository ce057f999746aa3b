"""The one run loop. It reads one queue; nobody else ends the process.

Every way out:

- the first SIGTERM or SIGINT: drain, stop, exit 0; the second cuts the drain short; the third kills the children and
  exits 74 at once
- starting fails (settings of the host, control plane refused, admin exposed): stop, that failure's exit code
- Envoy is given up: stop, exit 70
- any other component that ends is marked as failed permanently; the others keep running
- the control plane rejects permanently what the daemon cannot run without (`Rejected`): drain, stop, its exit code
- the application that we run ends: drain, stop, its exit code (`kumadp.daemon.application`)
- re-execution (``reexec``): execve(2) of the installed kumadp instead of an end
"""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Literal, Protocol

from kumadp.core.events import (
    ApplicationEnded,
    DrainEnded,
    Outcome,
    PartEnded,
    PreviousKnown,
    Rejected,
    Requested,
    SignalReceived,
    StartEnded,
    StopEnded,
    WatchdogTick,
)
from kumadp.core.phases import Phase
from kumadp.daemon.drain import bounded, walk
from kumadp.errors import ExitCode, KumadpError, host_error
from kumadp.host.early_signals import early_stops
from kumadp.host.reexec.handover import HELD_SIGNALS, release_signals

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from kumadp.core.events import Event, Request
    from kumadp.core.status import Status
    from kumadp.daemon.drain import Step
    from kumadp.envoy.workload_connections import Direction
    from kumadp.errors import Problem

log = logging.getLogger("kumadp.daemon")


# A start that is cancelled ends what it has begun, e.g. a program that was run for its version (seconds).
_START_ENDS_WITHIN = 2.0
_REQUESTS = frozenset({"reload", "reexec"})
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
REQUESTED_BY_SIGNAL: dict[int, Literal["reload", "reexec"]] = {signal.SIGHUP: "reload", signal.SIGUSR1: "reexec"}


class Driven(Protocol):
    """The daemon as the loop drives it; `kumadp.daemon.start.Daemon` is the real one."""

    status: Status
    events: asyncio.Queue[Event]
    looks_back: bool
    """Whether ``start`` posts `PreviousKnown`; signals are held until then."""

    @property
    def serves(self) -> bool:
        """Whether an Envoy runs, started now or by a previous kumadp."""

    async def start(self) -> None:
        """Bring everything up; raises KumadpError when that cannot be done."""

    async def stop(self, outcome: Outcome) -> None:
        """Leave everything in reverse order; ``outcome`` is why."""

    def takes(self, number: int) -> bool:
        """Whether a signal is for the application, not for us."""

    def kill(self) -> None:
        """Kill the children at once, without waiting."""

    def drain_steps(self, failed: bool) -> tuple[Step, ...]:
        """What to do before the stop; ``failed``: we cannot continue, and no stop was requested."""

    async def fail_health_checks(self) -> None:
        """Have Envoy fail its health checks."""

    @property
    def inbound_drained(self) -> bool:
        """Whether inbound counts as drained."""

    def note_inbound_drain(self) -> None:
        """From now on inbound counts as drained."""

    async def change_drain(self, what: Request) -> str:
        """Drain while everything keeps running, or end that; what came of it, in words. Raises KumadpError."""

    async def drain_inbound(self) -> None:
        """Have Envoy drain its inbound listeners and stay."""

    async def envoy_gone(self) -> None:
        """Return once Envoy has ended."""

    async def idle(self, direction: Direction) -> None:
        """Return once the workload has no connection of that direction through Envoy."""

    async def end_application(self) -> None:
        """Have the application end that we run, and wait for it."""

    def is_essential(self, part: str) -> bool:
        """Whether the daemon cannot go on without this component."""

    async def reload(self, why: str) -> str:
        """Read everything again and bring up a new epoch of Envoy; what came of it, in words. Raises KumadpError."""

    def beat(self) -> None:
        """The loop has come to a `WatchdogTick`."""

    async def reexec(self, why: str) -> str:
        """Become a new kumadp in the same process; returns, or raises KumadpError, only where that was not done."""


class RunLoop:
    """Runs a daemon from its start to its outcome."""

    def __init__(self, daemon: Driven) -> None:
        self._daemon = daemon
        self._status = daemon.status
        self._events = daemon.events
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops = 0
        self._drain: asyncio.Task[None] | None = None
        self._rejected: KumadpError | None = None
        self._previous_known = not daemon.looks_back
        self._held_signals: list[SignalReceived] = []

    def post(self, event: Event) -> None:
        """Put an event into the queue; to be called on the event loop."""
        self._events.put_nowait(event)

    async def run(self) -> Outcome:
        """Start the daemon and handle events until it has stopped."""
        self._take_signals()
        start = self._spawn(self._start(), "start")
        outcome = await self._until_outcome()
        if outcome.code is ExitCode.FORCED:
            return outcome
        self._status.move(Phase.STOPPING, outcome.why)
        self._spawn(self._stop(start, outcome), "stop")
        while not isinstance(event := await self._events.get(), StopEnded):
            if isinstance(event, WatchdogTick):
                self._daemon.beat()
            if self._counts_as_stop(event) and self._stops >= 3:
                return self._forced()
        self._status.move(Phase.STOPPED, outcome.why)
        return outcome

    async def _until_outcome(self) -> Outcome:
        while True:
            outcome = self._handle(await self._events.get())
            if outcome is not None:
                return outcome

    def _handle(self, event: Event) -> Outcome | None:
        match event:
            case SignalReceived() if not self._previous_known:
                return self._hold(event)
            case PreviousKnown(handled):
                return self._on_previous_known(handled)
            case SignalReceived(number) if self._daemon.takes(number):
                pass
            case SignalReceived(signal.SIGUSR2):
                self._on_inbound_drain()
            case SignalReceived(signal.SIGHUP | signal.SIGUSR1 as number):
                self._on_requested(Requested(REQUESTED_BY_SIGNAL[number], signal.Signals(number).name))
            case Requested():
                self._on_requested(event)
            case Rejected(error):
                return self._on_rejected(error)
            case SignalReceived():
                return self._on_stop_signal(event)
            case StartEnded(error):
                return self._on_start_ended(error)
            case PartEnded(name, error):
                return self._on_part_ended(name, error)
            case ApplicationEnded(why):
                return self._on_application_ended(why)
            case DrainEnded():
                return self._stopped(self._status.phase_why)
            case WatchdogTick():
                self._daemon.beat()
            case StopEnded():
                pass
        return None

    def _hold(self, event: SignalReceived) -> Outcome | None:
        """An Envoy of a previous kumadp may serve: what a signal means is decided when that is known."""
        self._held_signals.append(event)
        log.info("%s: waiting until it is known what already runs", signal.Signals(event.number).name)
        stops = sum(held.number in _STOPS for held in self._held_signals)
        return self._forced() if stops >= 3 else None

    def _on_previous_known(self, handled: asyncio.Future[None] | None = None) -> Outcome | None:
        self._previous_known = True
        held, self._held_signals = self._held_signals, []
        outcome = None
        for event in held:
            outcome = outcome or self._handle(event)
        if handled is not None and not handled.done():
            handled.set_result(None)
        return outcome

    def _on_inbound_drain(self) -> None:
        if self._daemon.inbound_drained:
            log.info("SIGUSR2 again: inbound is draining already")
            return
        if not self._daemon.serves:
            # A stop that comes later must not take for drained what starts after this.
            log.warning("SIGUSR2: no Envoy runs, so there is nothing to drain")
            return
        self._daemon.note_inbound_drain()
        log.info("SIGUSR2: draining inbound listeners, outbound goes on")
        self._spawn(bounded(self._daemon.drain_inbound(), "drain of inbound listeners"), "drain-inbound")

    def _on_requested(self, request: Requested) -> None:
        self._spawn(self._answer(request), request.what)

    async def _answer(self, request: Requested) -> None:
        """Do it, and report the outcome; a rejection has no other effect."""
        try:
            result = await self._do(request)
        except KumadpError as error:
            log.error("%s (%s): %s", request.what, request.why, error)
            if request.answer is not None and not request.answer.done():
                request.answer.set_exception(error)
        except asyncio.CancelledError:
            if request.answer is not None and not request.answer.done():
                request.answer.set_exception(KumadpError("everything stops"))
            raise
        else:
            log.info("%s (%s): %s", request.what, request.why, result)
            if request.answer is not None and not request.answer.done():
                request.answer.set_result(result)

    async def _do(self, request: Requested) -> str:
        """Do it; whatever goes wrong becomes a KumadpError, so that whoever requested it gets the reason."""
        if self._status.phase not in {Phase.READY, Phase.STARTING}:
            raise KumadpError(f"not while {self._status.phase.value}")
        try:
            if request.what == "reload":
                return await self._daemon.reload(request.why)
            if request.what == "reexec":
                return await self._daemon.reexec(request.why)
            return await self._daemon.change_drain(request.what)
        except KumadpError:
            raise
        except OSError as error:
            # A full disk, or a work directory that is gone.
            raise KumadpError(host_error(error) or str(error)) from error
        except Exception as error:
            log.exception("%s failed", request.what)
            raise KumadpError(f"a bug in kumadp: {type(error).__name__}: {error}") from error

    def _on_stop_signal(self, event: Event) -> Outcome | None:
        self._counts_as_stop(event)
        if self._stops >= 3:
            return self._forced()
        if self._stops == 2:
            log.info("second signal: the drain is cut short")
            if self._drain is not None:
                self._drain.cancel()
            return None
        if self._drain is not None:
            return None
        return self._begin_drain("stop requested by signal", "stopped by signal, nothing to drain")

    def _on_application_ended(self, why: str) -> Outcome | None:
        if self._drain is not None:
            self._drain.cancel()
            return None
        return self._begin_drain(why, why)

    def _on_rejected(self, error: KumadpError) -> Outcome | None:
        # What drains has no use for a control plane any more.
        if self._status.phase is Phase.DRAINING:
            return None
        self._rejected = error
        return self._begin_drain(str(error), "")

    def _stopped(self, why: str) -> Outcome:
        """How it ends after a drain."""
        return _failure(self._rejected) if self._rejected is not None else Outcome(ExitCode.OK, why)

    def _begin_drain(self, why: str, nothing: str) -> Outcome | None:
        steps = self._daemon.drain_steps(self._rejected is not None)
        if not steps:
            return self._stopped(nothing)
        self._status.move(Phase.DRAINING, why)
        self._drain = self._spawn(walk(self._daemon, steps), "drain")
        # Not from within: a task that is cancelled before its first step never runs, not even its `finally`.
        self._drain.add_done_callback(lambda _task: self.post(DrainEnded()))
        return None

    def _on_start_ended(self, error: BaseException | None) -> Outcome | None:
        if error is None:
            return None
        if isinstance(error, KumadpError) and any(held.number in _STOPS for held in self._held_signals):
            return self._stopped(f"stopped by signal; starting had failed: {error}")
        if self._status.phase is Phase.DRAINING and isinstance(error, KumadpError):
            if self._daemon.serves:
                log.error("starting failed: %s; the drain continues", error)
                return None
            return self._stopped(f"stopped by signal; starting had not ended: {error}")
        return _failure(error)

    def _on_part_ended(self, name: str, error: BaseException | None) -> Outcome | None:
        if self._daemon.is_essential(name):
            if self._status.phase is Phase.DRAINING:
                return self._stopped(f"stopped by signal; {name} ended while draining")
            if error is None:
                return Outcome(ExitCode.OK, f"{name} ended by itself with exit code 0")
            return _failure(error)
        story = str(error) if error is not None else "ended by itself"
        if error is not None and not isinstance(error, KumadpError):
            log.error("%s failed", name, exc_info=error)
        self._status.mark_failed(name, story)
        return None

    def _counts_as_stop(self, event: Event) -> bool:
        if isinstance(event, SignalReceived) and event.number in _STOPS:
            self._stops += 1
            log.info("%s (%d of 3)", signal.Signals(event.number).name, self._stops)
            return True
        return False

    def _forced(self) -> Outcome:
        self._daemon.kill()
        return Outcome(ExitCode.FORCED, "third signal: children killed, nothing waited for")

    async def _start(self) -> None:
        try:
            await self._daemon.start()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.post(StartEnded(error))
        else:
            self.post(StartEnded(None))

    async def _stop(self, start: asyncio.Task[None], outcome: Outcome) -> None:
        try:
            # What they have started, e.g. an Envoy that validates a configuration, must not outlive us.
            begun = {start, *(task for task in self._tasks if task.get_name() in _REQUESTS)}
            for task in begun:
                task.cancel()
            await asyncio.wait(begun, timeout=_START_ENDS_WITHIN)
            await self._daemon.stop(outcome)
        except Exception:
            log.exception("stopping failed")
        finally:
            self.post(StopEnded())

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _take_signals(self) -> None:
        # The handlers stay to the end: with the default action back, one more SIGTERM would end the process before it
        # has written why it ends, and with another exit code.
        loop = asyncio.get_running_loop()
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        for number in (*_STOPS, signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1):
            loop.add_signal_handler(number, self.post, SignalReceived(number))
        for number in early_stops():
            self.post(SignalReceived(number))
        # What came while one program followed another waits until now.
        release_signals()


def _failure(error: BaseException) -> Outcome:
    if isinstance(error, KumadpError):
        problems: tuple[Problem, ...] = getattr(error, "problems", ())
        if len(problems) < 2:
            return Outcome(error.exit_code, str(error))
        for problem in problems:
            log.error("%s", problem)
        return Outcome(error.exit_code, f"{len(problems)} problems, each named above, the first: {problems[0]}")
    if isinstance(error, OSError) and (reason := host_error(error)):
        log.debug("the operating system refused", exc_info=error)
        return Outcome(ExitCode.OS, reason)
    log.error("a bug in kumadp", exc_info=error)
    return Outcome(ExitCode.BUG, f"a bug in kumadp: {type(error).__name__}: {error}")
