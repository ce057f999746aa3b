"""Keeps one child running under a restart policy."""

from __future__ import annotations

import asyncio
import collections
import logging
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import msgspec

from kumadp.errors import ChildFailed, HostExhausted, SpawnError
from kumadp.process.child import Child, Command, ExitStatus
from kumadp.process.restart_policy import ChildState, GiveUp, RestartPolicy, decide

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

log = logging.getLogger("kumadp.process")

# How long a host that lacks descriptors or memory is given before the child is started again (seconds).
_EXHAUSTED_PAUSE = 1.0

CAUSES = ("exit", "signal", "out of memory", "unknown", "not started", "asked")


@dataclass(frozen=True, slots=True)
class ChildReport:
    """What is known of a child now; times in seconds since 1970, ``last_exit`` one sentence or empty.

    ``since`` is when it came into this state, ``started`` when its process began, ``died`` when the last one ended.
    ``causes`` counts the ends after which it was started again, those that were asked for too, each one of `CAUSES`.
    """

    name: str
    state: ChildState
    pid: int | None
    since: float
    restarts: int
    last_exit: str
    reason: str = ""
    started: float | None = None
    died: float | None = None
    causes: Mapping[str, int] = field(default_factory=dict)


class PreviousDeaths(msgspec.Struct, frozen=True):
    """What a program before us knew of a child's deaths, as in `ChildReport`."""

    restarts: int = 0
    last_exit: str = ""
    died: float | None = None
    causes: dict[str, int] = {}

    @classmethod
    def of(cls, report: ChildReport) -> PreviousDeaths:
        """What is to be known later on."""
        return cls(report.restarts, report.last_exit, report.died, dict(report.causes))


_NO_PAST = PreviousDeaths()


class Supervisor:
    """A component that spawns a child, brings it up, and spawns it again when it ends.

    ``bring_up`` returns once the child does its job (it is cancelled when the child ends first) and may raise to end
    everything. ``permanent`` reads an exit and the last lines and returns why a restart would be useless, or None.
    ``first`` is a child that runs already and is watched in place of the first one to be spawned;
    ``past`` is counted on from.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Awaitable[Command]],
        policy: RestartPolicy,
        bring_up: Callable[[Child], Awaitable[None]],
        *,
        permanent: Callable[[ExitStatus, list[str]], str | None] = lambda _status, _lines: None,
        unwanted: Callable[[], str] = lambda: "",
        changed: Callable[[ChildReport], None] = lambda _report: None,
        grace: float = 5.0,
        first: Child | None = None,
        past: PreviousDeaths = _NO_PAST,
    ) -> None:
        self.name = name
        # It runs before we do: a stop or a kill that comes first must find it.
        self.child = self._first = first
        self._moved = asyncio.Event()
        self._restart_why = ""
        self._command = command
        self._policy = policy
        self._bring_up = bring_up
        self._permanent = permanent
        self._unwanted = unwanted
        self._changed = changed
        self._grace = grace
        self._restarts = past.restarts
        self._causes = collections.Counter[str](past.causes)
        self._last_exit = past.last_exit
        self._died = past.died
        self.report = ChildReport(
            name,
            ChildState.STOPPED,
            None,
            time.time(),
            past.restarts,
            past.last_exit,
            died=past.died,
            causes=dict(past.causes),
        )

    async def run(self, up: Callable[[], None]) -> None:
        """Keep the child running until cancelled; raises ChildFailed with its story when it is given up."""
        history: tuple[float, ...] = ()
        try:
            while True:
                self._tell(ChildState.STARTING)
                try:
                    child = await self._spawn()
                except SpawnError as error:
                    history = await self._after_no_start(history, error)
                    continue
                self._tell(ChildState.STARTING)
                child, status = await self._live(child, up)
                ran = asyncio.get_running_loop().time() - child.started_at
                self._last_exit = _sentence(self.name, status, ran, child.tail(1))
                self._died = time.time()
                self._tell(ChildState.EXITED)
                if self._restart_why:
                    log.info("%s, as asked: %s", self._last_exit, self._restart_why)
                    self._restart_why = ""
                    self._causes["asked"] += 1
                    continue
                log.warning("%s", self._last_exit)
                history = await self._pause(history, ran, cause_of(status), self._permanent(status, child.tail(20)))
        finally:
            await self._end()

    def kill(self) -> None:
        """Kill the child at once."""
        if self.child is not None:
            self.child.send_signal(signal.SIGKILL)

    def hand_over(self, child: Child) -> Child | None:
        """From now on watch ``child``, which does its job already; the former, still running, is the caller's to end.

        None, and nothing has changed, where the former does not do its job any more.
        """
        former = self.child
        if former is None or former.ended or self.report.state not in {ChildState.RUNNING, ChildState.RUNNING_BLIND}:
            return None
        self.child = child
        self._moved.set()
        self._tell(ChildState.RUNNING)
        return former

    def set_running_blind(self, why: str) -> None:
        """Tell that the child does its job, but cannot be asked or told anything; a hand-over or an end undoes it."""
        if self.report.state is ChildState.RUNNING:
            self._tell(ChildState.RUNNING_BLIND, why)

    async def restart(self, why: str) -> None:
        """Stop the child and start it again at once; no restart of the budget is spent. Returns once it has ended."""
        child = self.child
        if child is None or child.ended:
            return
        self._restart_why = why
        self._tell(ChildState.STOPPING, why)
        await child.stop(self._grace)

    async def _live(self, child: Child, up: Callable[[], None]) -> tuple[Child, ExitStatus]:
        ended = asyncio.ensure_future(child.wait())
        coming = asyncio.ensure_future(self._bring_up(child))
        try:
            await asyncio.wait({ended, coming}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done() and not ended.done():
                coming.result()
                self._tell(ChildState.RUNNING)
                up()
                child, status = await self._last_of(child)
            else:
                status = await ended
        finally:
            ended.cancel()
            coming.cancel()
            # `await coming` would take our own cancellation for that of `coming`, and the child be started again.
            await asyncio.wait({coming})
        # What it found out in its last moment (an admin that is exposed) counts more than how the child ended.
        if not coming.cancelled():
            coming.result()
        return child, status

    async def _last_of(self, child: Child) -> tuple[Child, ExitStatus]:
        """The child that was the one when it ended, after any number of hand-overs."""
        while True:
            ended = asyncio.ensure_future(child.wait())
            moved = asyncio.ensure_future(self._moved.wait())
            try:
                await asyncio.wait({ended, moved}, return_when=asyncio.FIRST_COMPLETED)
                self._moved.clear()
                if self.child is not None and self.child is not child:
                    child = self.child
                elif ended.done():
                    return child, ended.result()
            finally:
                ended.cancel()
                moved.cancel()

    async def _spawn(self) -> Child:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        command = await self._command()
        # It may have become unwanted during the pause before a restart.
        if self.child is not None and (why := self._unwanted()):
            self._give_up(why)
        self.child = await Child.spawn(command)
        return self.child

    async def _after_no_start(self, history: tuple[float, ...], error: SpawnError) -> tuple[float, ...]:
        """What ran once may run again: the host may lack memory or descriptors, or its program be replaced just now."""
        if self.child is None:
            self._tell(ChildState.FATAL, str(error))
            raise error
        if isinstance(error, HostExhausted):
            # No restart would help, and none is spent.
            log.warning("%s; it is tried again until it works", error)
            self._tell(ChildState.BACKOFF, str(error))
            await asyncio.sleep(_EXHAUSTED_PAUSE)
            return history
        self._last_exit = str(error)
        log.warning("%s", error)
        return await self._pause(history, 0.0, "not started", None)

    async def _pause(self, history: tuple[float, ...], ran: float, cause: str, why: str | None) -> tuple[float, ...]:
        now = asyncio.get_running_loop().time()
        why = why or self._unwanted()
        decision = GiveUp(why) if why else decide(history, now, ran, self._policy)
        if isinstance(decision, GiveUp):
            self._give_up(decision.reason)
        self._restarts += 1
        self._causes[cause] += 1
        self._tell(ChildState.BACKOFF, f"started again in {decision.delay:.2f} s")
        await asyncio.sleep(decision.delay)
        return decision.history

    def _give_up(self, reason: str) -> NoReturn:
        self._tell(ChildState.FATAL, reason)
        raise ChildFailed(f"{self._last_exit}; {reason}")

    async def _end(self) -> None:
        child = self.child
        if child is not None and not child.ended:
            self._tell(ChildState.STOPPING)
            await child.stop(self._grace)
        if self.report.state is not ChildState.FATAL:
            self._tell(ChildState.STOPPED)

    def _tell(self, state: ChildState, reason: str = "") -> None:
        child, now = self.child if self.child is not None and not self.child.ended else None, time.time()
        pid = child.pid if child is not None else None
        started = now - asyncio.get_running_loop().time() + child.started_at if child is not None else None
        self.report = ChildReport(
            self.name, state, pid, now, self._restarts, self._last_exit, reason, started, self._died, dict(self._causes)
        )
        self._changed(self.report)


def cause_of(status: ExitStatus) -> str:
    """One of `CAUSES`."""
    if status.signal is not None:
        return "out of memory" if status.oom is not None else "signal"
    return "unknown" if status.code is None else "exit"


def _sentence(name: str, status: ExitStatus, ran: float, last: list[str]) -> str:
    said = f", its last line: {last[0]}" if last and last[0] else ""
    return f"{name} ended with {status.describe()} after {ran:.1f} s{said}"
