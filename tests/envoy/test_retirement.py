"""The last part of an old epoch's life, whatever the clock on the wall does meanwhile."""

from __future__ import annotations

import shutil
import time

import pytest

from kumadp.envoy.retirement import retire
from kumadp.process.child import Child, Command

pytestmark = pytest.mark.process


async def sleeping(seconds: float) -> Child:
    program = shutil.which("sleep")
    assert program is not None
    return await Child.spawn(Command((program, str(seconds)), "old", {}))


async def test_an_end_before_its_time_is_seen_whatever_the_wall_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e12)
    child = await sleeping(0.0)
    told: list[bool] = []
    await retire(child, time.monotonic() + 30, 1.0, told.append, lambda: None)
    assert told == [False]
