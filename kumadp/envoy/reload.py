"""What a reload runs, how it is checked before anything is touched, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kumadp.envoy.argv import workers_of
from kumadp.envoy.epochs import Ask, Checked, Kind
from kumadp.envoy.retirement import ABORTS_AFTER
from kumadp.envoy.server_state import configuration_error
from kumadp.process.output import output_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kumadp.bootstrap.address import AdminAddress
    from kumadp.envoy.server_state import ServerInfo
    from kumadp.process.child import Child, Command

log = logging.getLogger("kumadp.envoy")

# Envoy reads its configuration twice as long as it takes to start; a large one takes seconds.
VALIDATED_WITHIN = 60.0
VERSION_WITHIN = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to run Envoy: the command line of `envoy_argv`, where its admin listens, who tells it its listeners.

    A bootstrap that differs stands in a file of its own: the one before may be needed again.
    """

    command: Callable[[], Awaitable[Command]]
    admin: AdminAddress
    dynamic: bool


@dataclass(frozen=True, slots=True)
class HotRestart:
    """How hot restart is done. ``directory`` is our own, 0700; seconds everywhere.

    ``deadline``: until a new epoch is LIVE. ``drain_time``: as Envoy is told; an old epoch ends ``margin`` after it.
    """

    directory: Path
    drain_time: float
    deadline: float = 15.0
    margin: float = 2.0

    @property
    def parent_shutdown(self) -> float:
        """When an old epoch ends, counted from the moment the new one is LIVE."""
        return float(int(self.drain_time)) + self.margin


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """``ok`` where the new Envoy serves; ``missing``: where the old one listened and the new one does not."""

    kind: Kind
    reason: str
    epoch: int
    seconds: float
    missing: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether what was asked for runs, with everything that ran before."""
        return self.serves and not self.missing

    @property
    def serves(self) -> bool:
        """Whether what was asked for runs."""
        return self.kind in {Kind.HOT, Kind.COLD}


class EnvoyState(msgspec.Struct, frozen=True):
    """What another kumadp needs to know of the epochs in order to go on with them.

    ``retiring`` may have died before its time, and somebody stands in for it. ``retires_at``: when it is told to end,
    by the monotonic clock, which is the host's. ``locked`` says why hot restart is, or nothing. ``admin`` is the
    text of its `AdminAddress`, empty if an older kumadp wrote this.
    """

    serial: int
    epoch: int
    blind: bool
    current: int
    retiring: int | None = None
    retires_at: float = 0.0
    locked: str = ""
    generation: int = 0
    protocol: str = ""
    workers: int = 0
    admin: str = ""


@dataclass(frozen=True, slots=True)
class Adopted:
    """Envoys that run already: what was exported, and the processes themselves."""

    state: EnvoyState
    current: Child
    retiring: Child | None = None

    @property
    def lost(self) -> int | None:
        """The old epoch's pid where it died and the new one will still speak to it."""
        waits = self.retiring is None and time.monotonic() < self.state.retires_at + ABORTS_AFTER
        return self.state.retiring if waits else None


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who is told of each Envoy, by generation and pid; ``handover`` frames the time until a new one is LIVE.

    A generation is a number that only grows: epochs begin at 0 again after a cold start. ``off`` is called with the
    reason why this host allows no hot restart.
    """

    started: Callable[[int, int], None] = field(default=_nothing)
    live: Callable[[int], None] = field(default=_nothing)
    ended: Callable[[int, int, bool], None] = field(default=_nothing)
    handover: Callable[[bool], None] = field(default=_nothing)
    off: Callable[[str], None] = field(default=_nothing)


class Asks:
    """The reloads that are asked for and not answered yet."""

    def __init__(self) -> None:
        self._count = 0
        self._open: dict[int, tuple[Plan | None, str, float, asyncio.Future[ReloadOutcome]]] = {}

    def add(self, plan: Plan | None, why: str, *, cold: bool) -> tuple[Ask, asyncio.Future[ReloadOutcome]]:
        """A new one, and where its outcome comes."""
        self._count += 1
        future: asyncio.Future[ReloadOutcome] = asyncio.get_running_loop().create_future()
        self._open[self._count] = (plan, why, time.monotonic(), future)
        return Ask(self._count, cold), future

    def plan_of(self, ask: Ask | None, present: Plan) -> Plan:
        """What is to run."""
        return (self._open[ask.number][0] if ask is not None else None) or present

    def why_of(self, ask: Ask | None) -> str:
        """Why it was asked for."""
        return self._open[ask.number][1] if ask is not None else ""

    def tell(self, ask: Ask, kind: Kind, reason: str, epoch: int, missing: tuple[str, ...] = ()) -> None:
        """Answer it; ``epoch`` is the one that serves now."""
        _, why, since, future = self._open.pop(ask.number)
        outcome = ReloadOutcome(kind, reason, epoch, time.monotonic() - since, missing)
        level = logging.INFO if outcome.ok else logging.ERROR
        log.log(level, "reload (%s): %s%s", why, kind.value, f": {reason}" if reason else "")
        # Who asked may not wait any more.
        if not future.done():
            future.set_result(outcome)

    def refuse_all(self, reason: str, epoch: int) -> None:
        """Answer all that are left."""
        for number in tuple(self._open):
            self.tell(Ask(number, cold=False), Kind.REFUSED, reason, epoch)


async def check(plan: Plan, running: ServerInfo | None, locked: str) -> Checked:
    """Whether ``plan`` can follow the Envoy that is ``running`` (None: none answers), and hot. Raises OSError.

    ``locked`` says why no epoch can be started on the present base id, or nothing.
    """
    command = await plan.command()
    program, *arguments = command.argv
    try:
        told = await _said(command, (*arguments, "--mode", "validate"), VALIDATED_WITHIN)
        protocol = (await _said(command, ("--hot-restart-version",), VERSION_WITHIN)).rpartition("\n")[2]
    except TimeoutError:
        return Checked(refused=f"{program} did not end in time when its configuration was validated")
    if "' OK" not in told:
        lines = told.splitlines()
        why = configuration_error(lines) or (lines[-1] if lines else "it says nothing")
        return Checked(refused=f"Envoy refuses the configuration: {why}")
    if locked or running is None:
        return Checked(cold=locked or "Envoy's admin does not answer")
    if protocol != running.protocol:
        return Checked(cold=f"hot restart speaks {protocol or 'nothing'} there and {running.protocol} here")
    workers = workers_of(command.argv)
    if workers is not None and workers < running.workers:
        # Measured: connections that wait at the sockets of the workers that go are reset.
        return Checked(cold=f"with {workers} workers in place of {running.workers} connections would be lost")
    return Checked()


async def _said(command: Command, arguments: tuple[str, ...], deadline: float) -> str:
    # Envoy answers some questions on standard error.
    told = await output_of(
        Path(command.argv[0]), *arguments, environment=command.environment, deadline=deadline, with_errors=True
    )
    return told.strip()


def command_of(command: Command, argv: tuple[str, ...], epoch: str) -> Command:
    """The same command with another command line, and a FIFO of its own: two epochs run at a time."""
    fifo = command.fifo.with_name(f"{command.fifo.name}.{epoch}") if command.fifo is not None else None
    return replace(command, argv=argv, fifo=fifo)
