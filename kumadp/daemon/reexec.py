"""Re-execution: one kumadp follows another in the same process. The new program is tried, then execve(2) replaces this.

What the control plane sees: its stream breaks. For 10 s it rejects the next one, which is tried each 0.1 s by then, and
if the Dataplane came with the stream, it forgets it for as long as that takes (Kuma 2.8 to 2.13).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import msgspec

from kumadp.core.phases import Phase
from kumadp.core.previous import SECTION, DaemonSection, Previous, decode_section
from kumadp.daemon.readiness import whole_answer
from kumadp.errors import HandoverFailed
from kumadp.host.net.serve import paused
from kumadp.host.reexec.handover import become, collect, hold_signals, release_signals
from kumadp.process.child import Child
from kumadp.process.handover_check import check_new_program
from kumadp.process.supervisor import PreviousDeaths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import NoReturn

    from kumadp.core.context import Context
    from kumadp.core.part import Part
    from kumadp.host.reexec.handover import Handover

log = logging.getLogger("kumadp.daemon")


class Reexecution:
    """Re-executes a daemon of these ``parts``.

    ``previous`` is what this program itself was started with, ``ports`` those that were chosen, by the field of the
    settings. ``flush`` writes what is logged.
    """

    def __init__(
        self,
        context: Context,
        parts: Iterable[Part],
        previous: Handover | None,
        ports: Callable[[], Mapping[str, int]],
        flush: Callable[[], object],
    ) -> None:
        self._context = context
        self._parts = tuple(parts)
        self._previous = previous
        self._ports = ports
        self._flush = flush

    async def replace_program(self, why: str) -> NoReturn:
        """Become the new program; raises HandoverFailed, with everything as it was, if that cannot be done."""
        context = self._context
        version = await check_new_program(self._collect(), context.environ)
        log.info("re-executing (%s): %s takes over", why, version)
        for part in self._parts:
            await part.flush()
        async with paused():
            await hold_signals()
            try:
                if context.status.phase not in {Phase.READY, Phase.STARTING}:
                    raise HandoverFailed(f"everything stops ({context.status.phase.value})")
                become(self._collect(), context.environ, self._flush)
            finally:
                release_signals()

    def _collect(self) -> Handover:
        context = self._context
        handed = {part.name: section for part in self._parts if (section := part.hand_over()) is not None}
        work = context.work.handed()
        children = tuple(child.handed() for part in self._parts for child in part.children())
        own = DaemonSection(
            work=work,
            ready=context.status.phase is Phase.READY,
            started=context.status.started,
            children=children,
            at=time.monotonic(),
            ports=dict(self._ports()),
            past={name: PreviousDeaths.of(report) for name, report in context.status.children.items()},
        )
        sections = {SECTION: own, **{name: section.content for name, section in handed.items()}}
        descriptors = (
            work.lock,
            *(child.output for child in children),
            *(number for section in handed.values() for number in section.descriptors),
        )
        return collect(
            {name: msgspec.msgpack.encode(section) for name, section in sections.items()},
            descriptors,
            self._previous,
            ready=whole_answer(context.status.ready_state),
        )


def previous_of(handover: Handover) -> Previous:
    """Return what the previous program handed over; raises HandoverFailed."""
    section = decode_daemon_section(handover)
    children = {}
    for handed in section.children:
        try:
            children[handed.pid] = Child.from_handed(handed)
        except (OSError, ProcessLookupError) as error:
            log.warning("%s (pid %d) ended while kumadp was re-executed: %s", handed.name, handed.pid, error)
    return Previous(children, section, sections=handover.sections, count=handover.count)


def decode_daemon_section(handover: Handover) -> DaemonSection:
    """Return the daemon's own section; raises HandoverFailed if it does not have this type."""
    return decode_section(SECTION, handover.sections.get(SECTION, b""), DaemonSection)


def check_sections(handover: Handover, types: Mapping[str, type[msgspec.Struct]]) -> DaemonSection:
    """Decode the daemon's section, which is returned, and the parts' by their names; raises HandoverFailed."""
    for name, kind in types.items():
        if name in handover.sections:
            decode_section(name, handover.sections[name], kind)
    return decode_daemon_section(handover)
