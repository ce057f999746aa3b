"""A short run for its output: bounded in time and size, leaving nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.process.early_output import MAX_OUTPUT
from kumadp.process.program_output import output_of
from tests.support.poll import poll, poll_async
from tests.support.processes import is_alive, pid_in

if TYPE_CHECKING:
    from collections.abc import Coroutine

pytestmark = pytest.mark.process

SHELL = Path("/bin/sh")


def run(script: str, *, deadline: float = 20.0, with_errors: bool = False) -> Coroutine[object, object, str]:
    environment = {"PATH": os.defpath}
    return output_of(SHELL, "-c", script, environment=environment, deadline=deadline, with_errors=with_errors)


async def test_output_with_and_without_errors() -> None:
    script = "echo out; echo err >&2; exit 3"
    assert await run(script) == "out\n"
    assert await run(script, with_errors=True) == "out\nerr\n"


async def test_the_signal_that_ended_it_is_the_last_line_of_output_with_errors() -> None:
    assert await run("echo out; kill -9 $$", with_errors=True) == "out\nended with signal 9 (KILL)\n"
    assert await run("echo out; kill -9 $$") == "out\n"


async def test_it_gets_the_environment_it_is_given_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUMA_DATAPLANE_RUNTIME_TOKEN", "secret")
    assert "secret" not in await run("env")


async def test_a_flood_is_cut_and_ended() -> None:
    async with asyncio.timeout(20):
        assert len(await run("yes")) == MAX_OUTPUT


async def test_what_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with asyncio.timeout(20):
        with pytest.raises(TimeoutError):
            await run(f"sleep 60 & echo $! > {file}.new; mv {file}.new {file}; wait", deadline=0.5)
    poll(lambda: not is_alive(pid_in(file)), what="the end of what it started")


async def test_a_grandchild_that_keeps_the_pipe_holds_nothing_up(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    async with asyncio.timeout(20):
        with pytest.raises(TimeoutError):
            await run(f"sleep 60 & echo $! > {file}", deadline=0.5)
    poll(lambda: not is_alive(pid_in(file)), what="the end of the grandchild")


async def test_being_cancelled_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    task = asyncio.create_task(run(f"echo $$ > {file}; exec sleep 60"))

    async def started() -> bool:
        return file.exists() and bool(file.read_text().strip())

    await poll_async(started, what="the process")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    poll(lambda: not is_alive(pid_in(file)), what="its end")


async def test_what_cannot_be_run_is_an_error_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await output_of(tmp_path / "none", environment={}, deadline=1.0)
