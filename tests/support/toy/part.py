"""A toy part: a `sleep` as a supervised child, which readiness waits for, and an option that a reload applies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kumadp.core.part import Handed, Part
from kumadp.process.restart_policy import ChildState, RestartPolicy
from kumadp.process.supervisor import Supervisor, SupervisorOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kumadp.core.context import Context
    from kumadp.core.previous import Previous
    from kumadp.process.child import Child
    from kumadp.process.supervisor import ChildReport
    from kumadp.settings.model import Settings

NAME = "toy"


class ToySection(msgspec.Struct, frozen=True):
    """What is handed over: how many programs have had this part."""

    programs: int


class ToyPart(Part):
    """Runs ``sleep``."""

    name = NAME

    def __init__(self, context: Context) -> None:
        self._context = context
        self._adopted: Child | None = None
        self._supervisor: Supervisor | None = None
        self._programs = 1
        self._grace = context.settings.drain_time

    @classmethod
    def section_type(cls) -> type[msgspec.Struct]:
        """Return the type of its section of a handover."""
        return ToySection

    def adopt(self, previous: Previous) -> None:
        """Claim the child of a previous kumadp."""
        self._adopted = previous.claim_named(NAME)
        section = previous.section(NAME, ToySection)
        self._programs = section.programs + 1 if section is not None else 1

    async def start(self) -> None:
        """Start the child."""
        self._context.status.set_not_ready(NAME, "the toy does not run yet")
        self._supervisor = Supervisor(
            NAME,
            self._context.command(NAME, ("/bin/sleep", "3600")),
            RestartPolicy(5, 60.0),
            self._bring_up,
            SupervisorOptions(on_change=self._on_change, grace=1.0, adopted=self._adopted),
        )
        self._context.stack.start(self._supervisor)

    async def _bring_up(self, _child: Child) -> None:
        """Nothing more than a process is needed."""

    def _on_change(self, report: ChildReport) -> None:
        self._context.status.note_child(report)
        if report.state is ChildState.RUNNING:
            self._context.status.set_not_ready(NAME, "")
            self._context.settle()
        self._context.children_changed()

    def children(self) -> Sequence[Child]:
        """Return the ``sleep``."""
        child = self._supervisor.child if self._supervisor is not None else self._adopted
        return (child,) if child is not None and not child.ended else ()

    def status(self) -> Mapping[str, object]:
        """Return the section ``toy``."""
        return {NAME: {"programs": self._programs, "drain_time": self._grace}}

    async def apply(self, settings: Settings) -> Sequence[str]:
        """Apply an option, and report it."""
        self._grace = settings.drain_time
        return (f"the toy has {self._grace:.0f} s",)

    def hand_over(self) -> Handed:
        """Return the number of programs."""
        return Handed(ToySection(self._programs))
