"""Adoption: what a kumadp that was killed left in the work directory, and the records for the next one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.core.previous import Previous
from kumadp.host.state_file import ChildRecord, StateFile, adoptable, read_state, record, stray_processes
from kumadp.host.work_dir import SOURCE_FILE, is_leftover, is_output
from kumadp.process.child import Child, RunningProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from kumadp.core.context import Context
    from kumadp.core.part import Part

log = logging.getLogger("kumadp.daemon")

STRAY = "a process"
"""The name of a child that is in no state file."""


def previous_in(directory: Path) -> Previous:
    """Return what a killed kumadp left running, by its files in the work directory. May block."""
    state = read_state(directory)
    recorded = state.parts if state is not None else {}
    children = {}
    for child in adoptable(state) if state is not None else ():
        try:
            children[child.pid] = Child.adopt(
                RunningProcess(
                    child.name,
                    child.pid,
                    child.start_time,
                    ours=False,
                    fifo=_output_in(directory, child.fifo) if child.fifo else None,
                )
            )
        except (OSError, ValueError) as error:
            log.warning("cannot adopt %s (pid %d): %s", child.name, child.pid, error)
    for pid, start_time in stray_processes(directory, children):
        with contextlib.suppress(OSError, ProcessLookupError):
            children[pid] = Child.adopt(RunningProcess(STRAY, pid, start_time, ours=False))
    if not children:
        # Ports that nobody has any more may be taken by now.
        recorded = {key: value for key, value in recorded.items() if key == "removed_at_end"}
    return Previous(children, state=recorded)


def _output_in(directory: Path, text: str) -> Path:
    """Return the FIFO of a child, which is removed at its end: always one of the work directory.

    Its name alone counts, since the directory may have more than one path. Raises ValueError if it is no such name.
    """
    name = Path(text).name
    if "\0" in name or not is_output(name):
        raise ValueError(f"its output {text!r} is not a FIFO of the work directory")
    return directory / name


def tidy(directory: Path, kept: Container[Path] = ()) -> None:
    """Remove what reloads and dead children left: bootstraps that were replaced, FIFOs but ``kept``. May block."""
    # Nothing of it is needed: a directory that was taken away has nothing to remove, and a folder that somebody put in
    # the place of a file can stay.
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if path not in kept and (is_leftover(path.name) or (is_output(path.name) and path.is_fifo())):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def forget(directory: Path) -> None:
    """Remove what another kumadp would adopt. May block."""
    tidy(directory)
    with contextlib.suppress(OSError):
        (directory / SOURCE_FILE).unlink(missing_ok=True)


class StateRecorder:
    """Keeps the state file true: children, ports, and what each part needs to adopt them.

    ``ports`` are those that were chosen, by the field of the settings.
    """

    def __init__(self, context: Context, ports: Callable[[], Mapping[str, int]]) -> None:
        self._context = context
        self._ports = ports
        self._number = 0
        self._file: StateFile | None = None
        context.on_children_changed(self.note)

    def open(self) -> None:
        """Record from now on, in the work directory."""
        context = self._context
        self._file = StateFile(context.work.path, lambda reason: context.status.set_warning("state file", reason))

    @property
    def complete(self) -> bool:
        """Whether every part has its children: until then what a previous kumadp recorded is the truth."""
        return all(part.recordable for part in self._context.parts)

    def note(self) -> None:
        """Record the present state."""
        context, file = self._context, self._file
        if file is None or not self.complete:
            return
        parts: list[Part] = context.parts if context.keeps_children else []
        children = [(child, part.program) for part in parts for child in part.children()]
        removed = sorted(map(str, context.work.removed_at_end))
        state: dict[str, object] = {"addresses": dict(context.status.ports), "removed_at_end": removed}
        if parts:
            state["ports"] = dict(self._ports())
        for part in parts:
            state.update(part.record())
        self._number += 1
        number, loop = self._number, asyncio.get_running_loop()

        def look() -> None:
            loop.call_soon_threadsafe(write, _records(children))

        def write(records: list[ChildRecord]) -> None:
            # One thread can overtake another: only the newest counts.
            if number == self._number:
                file.note(records, state)

        loop.run_in_executor(None, look)

    async def written(self) -> None:
        """Return once what was noted is on disk."""
        if self._file is not None:
            await self._file.written()

    async def forget(self) -> None:
        """Leave nothing for another kumadp."""
        self._number += 1
        await self.written()
        if self._file is not None:
            await asyncio.to_thread(self._file.remove)
            await asyncio.to_thread(forget, self._context.work.path)


def _records(children: Sequence[tuple[Child, Path | None]]) -> list[ChildRecord]:
    """Return the living children as the state file has them. May block."""
    records = (
        record(child.name, child.pid, (str(program or ""),), fifo=str(child.fifo or ""), start_time=child.start_time)
        for child, program in children
    )
    return [child for child in records if child is not None]
