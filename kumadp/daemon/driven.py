"""What the run loop drives, and how a run ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kumadp.core.status import Status
    from kumadp.daemon.drain import Step
    from kumadp.envoy.workload_connections import Direction


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the daemon ends: exit code (an application's may be any) and the one line that says why."""

    code: int
    why: str


class Daemon(Protocol):
    """What the loop drives; `kumadp.daemon.start` builds the real one."""

    status: Status
    looks_back: bool
    """Whether ``start`` posts `PastKnown`; signals are held until then."""

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
        """Ask Envoy to fail its health checks."""

    def note_inbound_drain(self) -> None:
        """From now on inbound counts as drained."""

    async def drain_inbound(self) -> None:
        """Ask Envoy to drain its inbound listeners and to stay."""

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
        """The loop has come to a `Beat`."""

    async def reexec(self, why: str) -> str:
        """Become a new kumadp in the same process; returns, or raises KumadpError, only where that was not done."""
