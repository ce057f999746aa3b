"""The end of an old epoch, whatever the wall clock shows."""

from __future__ import annotations

import shutil
import time

import pytest

from kumadp.envoy.retirement import Due, retire
from kumadp.process.child import Child, Command

pytestmark = pytest.mark.process


async def sleeping(seconds: float) -> Child:
    program = shutil.which("sleep")
    assert program is not None
    return await Child.spawn(Command((program, str(seconds)), "old", {}))


async def test_an_early_end_is_detected_whatever_the_wall_clock_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e12)
    child = await sleeping(0.0)
    expected: list[bool] = []
    due = time.monotonic() + 30
    await retire(child, Due(due, due), 1.0, expected.append, lambda: None)
    assert expected == [False]
