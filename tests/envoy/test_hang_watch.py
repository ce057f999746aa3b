"""Envoys that hang, that are busy, and of which nothing can be known now."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from kumadp.envoy import hang_watch as hang
from kumadp.envoy.hang_watch import HangWatch
from kumadp.process.progress import main_thread_ticks
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = HangWatch(0.01, 0.05)


@pytest.fixture
def idle() -> Iterator[int]:
    """A process that uses no CPU."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        poll(lambda: main_thread_ticks(process.pid) is not None, what="the process")
        yield process.pid
        process.kill()


async def silent() -> bool:
    return False


async def test_who_uses_no_cpu_and_does_not_answer_hangs(idle: int) -> None:
    async with asyncio.timeout(20):
        assert await QUICK.hangs(idle, silent)


async def test_time_in_which_kumadp_was_stopped_does_not_count(idle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    real, skipped = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: real() + skipped)
    queried_at: list[float] = []

    async def note() -> bool:
        queried_at.append(loop.time())
        return False

    watch = HangWatch(0.01, 5.0)
    watching = asyncio.create_task(watch.hangs(idle, note))
    await asyncio.sleep(0.05)
    skipped, resumed = 3600.0, real() + 3600.0
    await asyncio.sleep(0.05)
    watching.cancel()
    assert queried_at == []
    assert loop.time() > resumed


async def test_who_is_gone_does_not_hang() -> None:
    async with asyncio.timeout(20):
        assert not await QUICK.hangs(1 << 22, silent)


async def test_too_many_open_files_are_neither_a_hang_nor_an_end(idle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = asyncio.Event()
    times = 0

    def cannot(_pid: int) -> int:
        nonlocal times
        times += 1
        if times > 20:
            looked.set()
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(hang, "main_thread_ticks", cannot)
    watching = asyncio.create_task(QUICK.hangs(idle, silent))
    async with asyncio.timeout(20):
        await looked.wait()
        assert not watching.done()
        # Once it can be looked at again, it counts from then on.
        monkeypatch.undo()
        assert await watching
