"""A part is one feature of the daemon: the daemon iterates over parts and knows none of them by name.

To add a feature: a package with a `Part`, and one line in `kumadp.daemon.start.make_parts`.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import msgspec

    from kumadp.bootstrap.generation import Generation
    from kumadp.bootstrap.prepare import Prepared
    from kumadp.core.previous import Previous
    from kumadp.process.child import Child
    from kumadp.settings.model import Settings


class Handed(NamedTuple):
    """A part's section of a handover, and the descriptors that must stay open for it over execve(2)."""

    content: msgspec.Struct
    descriptors: tuple[int, ...] = ()


class Part:
    """One feature in a run. Each method does nothing here; a part defines those that it needs.

    They are called in this order: `check`, `adopt`, `start`, `on_bootstrap` (once the bootstrap is there, and again
    with each later one), `started`; then `apply` at each reload, and `close` at the end.
    """

    name: ClassVar[str] = ""
    program: Path | None = None
    """The binary of its children."""

    @classmethod
    def section_type(cls) -> type[msgspec.Struct] | None:
        """Return the type of its section of a handover; None: it has none."""
        return None

    async def check(self) -> None:
        """Raise KumadpError if what the settings name for this part is not there. Nothing has been started yet."""

    def adopt(self, previous: Previous) -> None:
        """Claim the children of a previous kumadp that this part adopts, and read its section of the handover."""

    async def start(self) -> None:
        """Start the components of this part; raises KumadpError if the daemon cannot run without them."""

    async def on_bootstrap(self, prepared: Prepared) -> None:
        """Follow the bootstrap that Envoy runs with from now on."""

    def on_generation(self, generation: Generation) -> None:
        """Adapt to the control plane's generation, known now for the first time, or another one than before.

        Called before `on_bootstrap` if it is the generation that sent that bootstrap.
        """
        del generation

    async def started(self) -> None:
        """Start what needs every other part: all of them have been started."""

    async def before_reload(self) -> None:
        """Prepare for a reload: its files are about to be read."""

    async def apply(self, settings: Settings) -> Sequence[str]:
        """Take the settings of a reload; returns a note about each effect that an operator should know of."""
        del settings
        return ()

    @property
    def recordable(self) -> bool:
        """Whether `children` is complete; until then the state file of the previous kumadp is not replaced."""
        return True

    def children(self) -> Sequence[Child]:
        """Return the processes of this part that run, adopted ones too: to kill, to record, to hand over."""
        return ()

    def child_facts(self, pid: int) -> Mapping[str, object]:
        """Return what a crash record should have of the child ``pid``; empty if it is not this part's."""
        del pid
        return {}

    def status(self) -> Mapping[str, object]:
        """Return this part's sections of the status by their keys; JSON types."""
        return {}

    def record(self) -> Mapping[str, object]:
        """Return what a kumadp that adopts the children after a crash needs, by keys of the state file; JSON types."""
        return {}

    def hand_over(self) -> Handed | None:
        """Return this part's section for a re-execution. Raises HandoverFailed if this is not the time for one."""
        return None

    async def flush(self) -> None:
        """Return once what is to be on disk for the next kumadp is there; more may follow."""

    def kill(self) -> None:
        """Kill the children at once."""
        for child in self.children():
            child.send_signal(signal.SIGKILL)

    async def close(self) -> None:
        """Release what outlives the components; all of them have ended."""


def section_types() -> dict[str, type[msgspec.Struct]]:
    """Return the types of all sections of a handover, by the names of their parts; of the modules imported so far."""
    return {part.name: kind for part in Part.__subclasses__() if (kind := part.section_type()) is not None}
