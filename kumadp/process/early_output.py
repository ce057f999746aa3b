"""Programs that are run for their output while kumadp is still being imported."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_OUTPUT = 64 * 1024
# Seconds until the kernel has ended what was killed.
REAPED_WITHIN = 1.0


class EarlyOutput:
    """A run of a program, begun without an event loop. It is ended by `text`, or by `close`."""

    def __init__(self, argv: tuple[str, ...], environment: Mapping[str, str], *, with_errors: bool) -> None:
        self._process = subprocess.Popen(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if with_errors else subprocess.DEVNULL,
            start_new_session=True,
        )

    async def text(self, deadline: float) -> str:
        """Return its output, at most 64 KiB; raises TimeoutError if it does not end within ``deadline`` seconds."""
        reading = asyncio.ensure_future(asyncio.to_thread(self._read, deadline))
        try:
            return await asyncio.shield(reading)
        finally:
            if not reading.done():
                # Cancelled: the thread reads the end of the output.
                self._kill()

    def close(self) -> None:
        """End it, with what it has started."""
        self._kill()
        assert self._process.stdout is not None  # noqa: S101 - as it was made
        self._process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(REAPED_WITHIN)

    def _read(self, deadline: float) -> str:
        try:
            return self._output(time.monotonic() + deadline).decode("utf-8", "replace")
        finally:
            # It has ended, or is to end; its children may hold the pipe.
            self.close()

    def _output(self, until: float) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - as it was made
        output, data, poller = self._process.stdout.fileno(), bytearray(), select.poll()
        poller.register(output, select.POLLIN)
        while len(data) < MAX_OUTPUT:
            if not poller.poll(max(until - time.monotonic(), 0.0) * 1000):
                raise TimeoutError
            part = os.read(output, MAX_OUTPUT - len(data))
            if not part:
                break
            data += part
        return bytes(data)

    def _kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


_begun: dict[tuple[str, ...], EarlyOutput] = {}


def begin_early(program: Path, *arguments: str, environment: Mapping[str, str], with_errors: bool = False) -> None:
    """Run a program now, for the first `output_of` of the same command line. What fails is left to that call."""
    argv = (str(program), *arguments)
    if argv not in _begun:
        with contextlib.suppress(OSError):
            _begun[argv] = EarlyOutput(argv, environment, with_errors=with_errors)


def take_early(program: Path, *arguments: str) -> EarlyOutput | None:
    """Return the run of this command line that was begun, once."""
    return _begun.pop((str(program), *arguments), None)


def end_early() -> None:
    """End the runs that nobody has taken."""
    while _begun:
        _begun.popitem()[1].close()
