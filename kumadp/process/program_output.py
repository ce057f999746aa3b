"""A short run of a program for what it prints, as for its version."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_OUTPUT = 64 * 1024
_REAPED_WITHIN = 1.0


async def output_of(
    program: Path, *arguments: str, environment: Mapping[str, str], deadline: float, with_errors: bool = False
) -> str:
    """What it writes to standard output (``with_errors``: to standard error too), 64 KiB at most.

    Nothing of it is left behind, also when this is cancelled. Raises TimeoutError when it does not end within
    ``deadline`` seconds, and OSError when it cannot be run.
    """
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
        async with asyncio.timeout(deadline):
            output = await _beginning(process.stdout)
        ended = True
    finally:
        # What it started may hold the pipe when it is gone itself; the group is its own (setsid(2)).
        if not ended or process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAPED_WITHIN):
                # To its end: the pipe is closed by that alone.
                while process.stdout is not None and await process.stdout.read(MAX_OUTPUT):
                    pass
                await process.wait()
    return output.decode("utf-8", "replace")


async def _beginning(stream: asyncio.StreamReader | None) -> bytes:
    data = bytearray()
    while stream is not None and len(data) < MAX_OUTPUT:
        part = await stream.read(MAX_OUTPUT - len(data))
        if not part:
            break
        data += part
    return bytes(data)
