"""Checks that the new program can start before it replaces the old one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from kumadp.errors import HandoverFailed
from kumadp.host.log.secrets import redact
from kumadp.host.reexec.handover import Handover, open_stdin, own_command_line, write
from kumadp.host.reexec.interim_responder import CHECK_VARIABLE, VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

DEADLINE = 20.0
_MAX_OUTPUT = 64 * 1024


async def check_new_program(
    handover: Handover, environ: Mapping[str, str], *, deadline: float = DEADLINE, argv: tuple[str, ...] | None = None
) -> str:
    """Run the new program with the same input, up to the point where it would take over; return its version.

    It reads settings and resources, imports its modules and decodes the handover, without our sockets and children.
    Raises HandoverFailed with the reason if that does not succeed within ``deadline`` seconds.
    """
    with contextlib.ExitStack() as done:
        memfd = write(handover)
        done.callback(os.close, memfd)
        stdin = open_stdin()
        done.callback(os.close, stdin)
        return await _run(argv or own_command_line(), memfd, stdin, environ, deadline)


async def _run(argv: tuple[str, ...], memfd: int, stdin: int, environ: Mapping[str, str], deadline: float) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env={**environ, VARIABLE: str(memfd), CHECK_VARIABLE: "1"},
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(memfd,),
            start_new_session=True,
        )
    except OSError as error:
        raise HandoverFailed(f"the new program cannot be started: {error.strerror}") from None
    assert process.stdout is not None  # noqa: S101
    try:
        async with asyncio.timeout(deadline):
            output = await process.stdout.read()
            code = await process.wait()
    except TimeoutError:
        raise HandoverFailed(f"the new program did not pass its check within {deadline:.0f} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    lines = output[-_MAX_OUTPUT:].decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if code:
        raise HandoverFailed(redact(f"the new program does not start: {last or f'exit code {code}'}"))
    return last
