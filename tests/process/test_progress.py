"""Deadlines that follow progress: the rule with a simulated clock, and real processes that work or do not."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from kumadp.process import progress as progress_module
from kumadp.process.progress import BUSY, LONGEST_TIMES, Progress, ProgressWatch, main_thread_ticks
from tests.support.poll import poll
from tests.support.scripts import running_script

if TYPE_CHECKING:
    from collections.abc import Mapping

IDLE = 15.0


def walk(progress: Progress, seconds: float, share: float = 0.0) -> list[bool]:
    """Look once a second while the process uses this share of a processor; whether each look saw progress."""
    return [progress.note(progress.now + 1.0, progress.cpu + share) for _ in range(round(seconds))]


def test_without_progress_it_is_overdue_after_the_deadline() -> None:
    progress = Progress(IDLE, now=100.0, cpu=7.0)
    walk(progress, 14)
    assert (progress.overdue, progress.remaining) == ("", 1.0)
    walk(progress, 1)
    assert progress.overdue == "no progress for 15 s: CPU 0.0 s"


def test_one_that_works_is_waited_for_far_beyond_the_deadline() -> None:
    progress = Progress(IDLE, now=0.0)
    assert all(walk(progress, 10 * IDLE, share=0.9))
    assert progress.overdue == ""
    walk(progress, 14)
    assert progress.overdue == ""
    walk(progress, 1)
    assert progress.overdue == "no progress for 15 s: CPU 0.0 s"


def test_a_small_share_of_a_busy_host_is_progress() -> None:
    progress = Progress(IDLE, now=0.0)
    # Clock ticks: what it used is seen late, and at once.
    for _ in range(20):
        walk(progress, 9)
        assert progress.note(progress.now + 1.0, progress.cpu + 11 * BUSY)
    assert progress.overdue == ""


def test_what_a_process_that_waits_uses_is_no_progress() -> None:
    progress = Progress(IDLE, now=0.0)
    # A tick right after the last progress is one; those that follow are not.
    assert progress.note(0.2, 0.01)
    for _ in range(4):
        progress.note(progress.now + 4.0, progress.cpu + 0.01)
    assert progress.overdue == "no progress for 15 s: CPU 0.0 s"


def test_one_that_always_moves_is_overdue_in_the_end() -> None:
    progress = Progress(IDLE, now=0.0)
    walk(progress, LONGEST_TIMES * IDLE - 1, share=1.0)
    assert progress.overdue == ""
    walk(progress, 1, share=1.0)
    assert progress.overdue == "no end within 600 s, though it moves: CPU 600.0 s"


def test_a_count_that_changes_is_progress_and_the_last_one_is_named() -> None:
    progress = Progress(IDLE, now=0.0)
    for left in (14, 13, 12):
        walk(progress, 10)
        assert progress.is_quiet
        moved = progress.note_counts(progress.now, progress.cpu, {"clusters warming": left, "listeners warming": 0})
        assert moved == (left < 14)
    walk(progress, IDLE - 1)
    assert progress.overdue == ""
    # The same again is none, and neither is that nothing is known.
    same = {"clusters warming": 12, "listeners warming": 0}
    assert not progress.note_counts(progress.now, progress.cpu, same)
    assert not progress.note_counts(progress.now + 1.0, progress.cpu, {})
    assert progress.overdue == "no progress for 15 s: CPU 0.0 s, 12 clusters warming"


def test_processor_time_for_counting_is_no_progress() -> None:
    progress = Progress(IDLE, now=0.0)
    for _ in range(5):
        walk(progress, 3)
        progress.note_counts(progress.now, progress.cpu + 0.5, {"clusters warming": 12})
    assert progress.overdue == "no progress for 15 s: CPU 0.0 s, 12 clusters warming"


def test_time_in_which_nobody_looked_does_not_count() -> None:
    progress = Progress(IDLE, now=0.0)
    walk(progress, 10)
    # All of it was stopped for an hour.
    progress.note(progress.now + 3600.0, progress.cpu)
    assert progress.overdue == ""
    walk(progress, IDLE)
    assert progress.overdue.startswith("no progress for 15 s")


BUSY_LOOP = "print(flush=True)\nwhile True: pass"
WAITING = "import time\nprint(flush=True)\ntime.sleep(1000)"


@pytest.mark.process
async def test_a_process_that_works_is_waited_for_until_it_is_stopped() -> None:
    moved = asyncio.Event()
    with running_script(BUSY_LOOP) as pid:
        watching = asyncio.create_task(ProgressWatch(2.0, on_progress=moved.set).overdue(pid))
        async with asyncio.timeout(60):
            for _ in range(10):
                moved.clear()
                await moved.wait()
        assert not watching.done()
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            assert (await watching).startswith("no progress for 2 s: CPU 0.0 s")


@pytest.mark.process
async def test_a_process_that_waits_is_overdue_with_what_it_waits_for() -> None:
    async def counts(timeout: float) -> Mapping[str, int]:
        assert 0 < timeout <= 2.0
        return {"clusters warming": 12}

    with running_script(WAITING) as pid:
        async with asyncio.timeout(60):
            assert await ProgressWatch(1.0, counts).overdue(pid) == (
                "no progress for 1 s: CPU 0.0 s, 12 clusters warming"
            )


async def test_a_process_that_is_gone_or_cannot_be_read_makes_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(20):
        assert await ProgressWatch(0.1).overdue(1 << 22) == "no progress for 0.1 s: CPU 0.0 s"

    def cannot(_pid: int) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(progress_module, "main_thread_ticks", cannot)
    async with asyncio.timeout(20):
        assert await ProgressWatch(0.1).overdue(1 << 22) == "no progress for 0.1 s: CPU 0.0 s"


def test_processor_time_of_the_main_thread_is_read() -> None:
    with running_script(BUSY_LOOP) as pid:
        before = main_thread_ticks(pid)
        assert before is not None
        poll(lambda: (main_thread_ticks(pid) or 0) > before, what="processor time")
    assert main_thread_ticks(1 << 22) is None
