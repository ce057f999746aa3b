"""Ending what a kumadp that is not there any more left running."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.daemon.adoption import forget, left_in
from kumadp.envoy.base_id import sweep as sweep_epochs
from kumadp.host.socket_names import remove_stale
from kumadp.host.work_dir import STATE_FILE, open_work_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# How long systemd may take to say what it is about to do (seconds).
_ASKED_FOR = 5.0


async def sweep(directory: Path, grace: float) -> list[str]:
    """End, in ``grace`` seconds, the processes that a dead kumadp left there, and take its files away; each in words.

    Raises WorkDirError where a living kumadp has the directory, or it is not ours.
    """
    work = open_work_dir("", str(directory), "", "", {})
    try:
        before = left_in(work.path)
        children = (*before.children, *before.killed)
        said = [f"{child.name} (pid {child.pid})" for child in children]
        await asyncio.gather(*(child.stop(grace) for child in before.children), before.ended())
        await asyncio.to_thread(_remove, work.path, [Path(path) for path in before.removed_at_end])
        return said
    finally:
        work.close()


def _remove(directory: Path, removed_at_end: Iterable[Path]) -> None:
    sweep_epochs(directory)
    forget(directory)
    remove_stale(directory)
    # The directory may be the user's own: of files with names that others use, those go that were written for the run.
    for path in (directory / STATE_FILE, *(path for path in removed_at_end if path.parent == directory)):
        with contextlib.suppress(OSError, ValueError):
            path.unlink(missing_ok=True)


def is_over(result: str, unit: str, environ: Mapping[str, str]) -> bool:
    """Whether no kumadp is to follow in this unit: it ended as it should, or is being stopped. May block.

    ``result`` is ``$SERVICE_RESULT`` (systemd.exec(5)); the unit's job is asked for, as systemd tells an ExecStopPost
    of no restart that is due. Where it does not answer, one that had to be killed at its stop is over.
    """
    if result == "success":
        return True
    command = ["systemctl", "list-jobs", "--no-legend", "--plain"]
    try:
        asked = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_ASKED_FOR, env=dict(environ)
        )
    except (OSError, subprocess.SubprocessError):
        return result == "timeout"
    # Number, unit, kind, state; a restart by Restart= begins its job only later.
    jobs = [line.split() for line in asked.stdout.splitlines()]
    return any(job[1:2] == [unit] and job[2:3] in (["stop"], ["restart"]) for job in jobs)
