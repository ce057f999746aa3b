"""`kumadp demo`: which phases it prints without a terminal, and that a signal ends a check."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kumadp.cli.demo.command import _new_phase, _unless_stopped

if TYPE_CHECKING:
    import pytest


def test_each_phase_is_printed_once() -> None:
    printed: set[str] = set()
    phases = ("STARTING", "READY", "READY", "DRAINING", "DRAINING")
    shown = [_new_phase({"phase": phase}, printed) for phase in phases]
    assert shown == [None, "READY", None, "DRAINING", None]
    assert _new_phase(None, printed) is None


async def test_work_that_ends_first() -> None:
    async def work() -> bool:
        return True

    assert await _unless_stopped(work(), asyncio.Event())


async def test_a_signal_that_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = asyncio.Event()

    async def work() -> bool:
        stopped.set()
        await asyncio.Event().wait()
        return True

    assert not await _unless_stopped(work(), stopped)
    assert capsys.readouterr().out == "failed: stopped by a signal\n"
