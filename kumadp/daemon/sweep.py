"""Sweeping: ending what a dead kumadp left running, and removing its files."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.daemon.adoption import STRAY, forget, previous_in
from kumadp.envoy.base_id import sweep as sweep_epochs
from kumadp.host.socket_names import remove_stale
from kumadp.host.work_dir import STATE_FILE, open_work_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# How long systemd may take to list its jobs (seconds).
_JOBS_WITHIN = 5.0


async def sweep(directory: Path, grace: float) -> list[str]:
    """End, in ``grace`` seconds, the processes that a dead kumadp left there, and remove its files; return names.

    Raises WorkDirError if a running kumadp has the directory, or it is another user's.
    """
    work = open_work_dir("", str(directory), "", "", {})
    try:
        previous = previous_in(work.path)
        stopped = [child for child in previous.children if child.name != STRAY and previous.claim(child.pid)]
        previous.kill_unclaimed()
        names = [f"{child.name} (pid {child.pid})" for child in (*stopped, *previous.killed)]
        await asyncio.gather(*(child.stop(grace) for child in stopped), previous.killed_ended())
        await asyncio.to_thread(_remove, work.path, [Path(path) for path in previous.removed_at_end])
        return names
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
    """Return whether no kumadp follows in this unit: it ended as it should, or is being stopped. May block.

    ``result`` is ``$SERVICE_RESULT`` (systemd.exec(5)); the unit's jobs are listed, as systemd does not report a
    pending restart to an ExecStopPost. If it does not answer, one that had to be killed at its stop is over.
    """
    if result == "success":
        return True
    command = ["systemctl", "list-jobs", "--no-legend", "--plain"]
    try:
        listed = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_JOBS_WITHIN, env=dict(environ)
        )
    except (OSError, subprocess.SubprocessError):
        return result == "timeout"
    # Number, unit, kind, state; a restart by Restart= begins its job only later.
    jobs = [line.split() for line in listed.stdout.splitlines()]
    return any(job[1:2] == [unit] and job[2:3] in (["stop"], ["restart"]) for job in jobs)
