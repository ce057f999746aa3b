"""Runs a program briefly for its output, e.g. its version."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from kumadp.process.early_output import MAX_OUTPUT, REAPED_WITHIN, take_early
from kumadp.process.exit_status import ExitStatus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENDED = "ended with"


async def output_of(
    program: Path,
    *arguments: str,
    environment: Mapping[str, str],
    deadline: float,
    with_errors: bool = False,
    while_moving: bool = False,
) -> str:
    """Return the program's standard output (``with_errors``: and standard error), at most 64 KiB.

    Takes the run of this command line that was begun early, if there is one (`kumadp.process.early_output`).
    With ``with_errors`` the last line of one that a signal has ended is "ended with signal ..." (`ENDED`).
    Leaves no process behind, also if cancelled. Raises TimeoutError if the program does not end within ``deadline``
    seconds (``while_moving``: that many seconds without progress, see `kumadp.process.progress`), and OSError if it
    cannot be run.
    """
    if (early := take_early(program, *arguments)) is not None:
        return await early.text(deadline)
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT if with_errors else asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    ended = False
    try:
        if while_moving:
            output = await _while_moving(process, deadline)
        else:
            async with asyncio.timeout(deadline):
                output = await _beginning(process.stdout)
        ended = True
    finally:
        # Its children may hold the pipe after it has ended; the process group is separate (setsid(2)).
        if not ended or process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REAPED_WITHIN):
                # Read to the end: only that closes the pipe.
                while process.stdout is not None and await process.stdout.read(MAX_OUTPUT):
                    pass
                await process.wait()
    text = output.decode("utf-8", "replace")
    # One whose output was too long was ended here.
    if with_errors and len(output) < MAX_OUTPUT and process.returncode is not None and process.returncode < 0:
        text = f"{text.rstrip()}\n{ENDED} {ExitStatus(None, -process.returncode).describe()}\n"
    return text


async def _while_moving(process: asyncio.subprocess.Process, idle: float) -> bytes:
    from kumadp.process.progress import ProgressWatch

    reading = asyncio.ensure_future(_beginning(process.stdout))
    overdue = asyncio.ensure_future(ProgressWatch(idle).overdue(process.pid))
    try:
        await asyncio.wait({reading, overdue}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise TimeoutError(overdue.result())
        return reading.result()
    finally:
        reading.cancel()
        overdue.cancel()
        # Two may not read at a time.
        await asyncio.gather(reading, overdue, return_exceptions=True)


async def _beginning(stream: asyncio.StreamReader | None) -> bytes:
    data = bytearray()
    while stream is not None and len(data) < MAX_OUTPUT:
        part = await stream.read(MAX_OUTPUT - len(data))
        if not part:
            break
        data += part
    return bytes(data)
