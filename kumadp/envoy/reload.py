"""A reload's plan, its check before anything is changed, and its outcome."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from kumadp.envoy.argv import workers_of
from kumadp.envoy.epochs import ReloadChecked, ReloadKind, ReloadRequest
from kumadp.envoy.server_state import configuration_error
from kumadp.process.program_output import ENDED, output_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.envoy.server_state import ServerInfo
    from kumadp.process.child import Command

log = logging.getLogger("kumadp.envoy")

# Seconds without progress: a large configuration takes as long as it takes. A wrapper of Envoy makes none itself.
VALIDATION_IDLE = 60.0
VERSION_WITHIN = 10.0


class Plan(Struct, frozen=True):
    """A way to run Envoy: the command line of `envoy_argv`, the address of its admin, whether xDS sends its listeners.

    Each bootstrap is written to another file: the previous one may be needed again.
    """

    command: Callable[[], Awaitable[Command]]
    admin: AdminAddress
    dynamic: bool


class ReloadOutcome(Struct, frozen=True):
    """The result of a reload. ``epoch`` serves now; ``missing`` are addresses that the new Envoy lacks."""

    kind: ReloadKind
    reason: str
    epoch: int
    seconds: float = 0.0
    missing: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if the requested Envoy runs, with all listeners of the old one."""
        return self.serves and not self.missing

    @property
    def serves(self) -> bool:
        """True if the requested Envoy runs."""
        return self.kind in {ReloadKind.HOT, ReloadKind.COLD}


class _Pending(Struct, frozen=True):
    plan: Plan | None
    why: str
    since: float
    outcome: asyncio.Future[ReloadOutcome]


class ReloadRequests:
    """The reloads whose outcome is not reported yet."""

    def __init__(self) -> None:
        self._count = 0
        self._pending: dict[int, _Pending] = {}

    def add(self, plan: Plan | None, why: str, *, cold: bool) -> tuple[ReloadRequest, asyncio.Future[ReloadOutcome]]:
        """Return a new request, and the future of its outcome."""
        self._count += 1
        future: asyncio.Future[ReloadOutcome] = asyncio.get_running_loop().create_future()
        self._pending[self._count] = _Pending(plan, why, time.monotonic(), future)
        return ReloadRequest(self._count, cold), future

    def plan_of(self, request: ReloadRequest | None, current: Plan) -> Plan:
        """Return the plan to run: the request's, ``current`` if it has none."""
        return (self._pending[request.number].plan if request is not None else None) or current

    def why_of(self, request: ReloadRequest | None) -> str:
        """Return the reason for the request."""
        return self._pending[request.number].why if request is not None else ""

    def report(self, request: ReloadRequest, outcome: ReloadOutcome) -> None:
        """Log the outcome and hand it to the caller of the reload; ``seconds`` is filled in."""
        pending = self._pending.pop(request.number)
        outcome = replace(outcome, seconds=time.monotonic() - pending.since)
        level = logging.INFO if outcome.ok else logging.ERROR
        reason = f": {outcome.reason}" if outcome.reason else ""
        log.log(level, "reload (%s): %s%s", pending.why, outcome.kind.value, reason)
        # The caller may not wait any more.
        if not pending.outcome.done():
            pending.outcome.set_result(outcome)

    def refuse_all(self, reason: str, epoch: int) -> None:
        """Report all pending requests as refused."""
        for number in tuple(self._pending):
            self.report(ReloadRequest(number, cold=False), ReloadOutcome(ReloadKind.REFUSED, reason, epoch))


async def check(plan: Plan, running: ServerInfo | None, locked: str, *, idle: float = VALIDATION_IDLE) -> ReloadChecked:
    """Check whether ``plan`` can follow the Envoy that is ``running`` (None: its admin does not answer), and hot.

    ``locked`` is the reason why no epoch can be started on the present base id, or "". ``idle`` is how long the
    validation may make no progress, in seconds. Raises OSError.
    """
    command = await plan.command()
    program, *arguments = command.argv
    try:
        output = await _output(command, (*arguments, "--mode", "validate"), idle, while_moving=True)
        protocol = (await _output(command, ("--hot-restart-version",), VERSION_WITHIN)).rpartition("\n")[2]
    except TimeoutError as error:
        why = f": {error}" if str(error) else ""
        return ReloadChecked(refused=f"{program} did not end in time when its configuration was validated{why}")
    if "' OK" not in output:
        lines = output.splitlines()
        if lines and lines[-1].startswith(ENDED):
            return ReloadChecked(refused=f"{program} {lines[-1]} while its configuration was validated")
        why = configuration_error(lines) or (lines[-1] if lines else "it printed nothing")
        return ReloadChecked(refused=f"Envoy refuses the configuration: {why}")
    if locked or running is None:
        return ReloadChecked(cold=locked or "Envoy's admin does not answer")
    if protocol != running.protocol:
        return ReloadChecked(cold=f"hot restart speaks {protocol or 'nothing'} there and {running.protocol} here")
    workers = workers_of(command.argv)
    if workers is not None and workers < running.workers:
        # Measured: connections that wait at the sockets of the removed workers are reset.
        return ReloadChecked(cold=f"with {workers} workers in place of {running.workers} connections would be lost")
    return ReloadChecked()


async def _output(command: Command, arguments: tuple[str, ...], deadline: float, *, while_moving: bool = False) -> str:
    # Envoy prints some of it on standard error.
    text = await output_of(
        Path(command.argv[0]),
        *arguments,
        environment=command.environment,
        deadline=deadline,
        with_errors=True,
        while_moving=while_moving,
    )
    return text.strip()


def command_of(command: Command, argv: tuple[str, ...], epoch: str) -> Command:
    """Return the same command with another command line and its own FIFO: two epochs run at a time."""
    fifo = command.fifo.with_name(f"{command.fifo.name}.{epoch}") if command.fifo is not None else None
    return replace(command, argv=argv, fifo=fifo)
