"""Components are entered in order, left in reverse, each with its own deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from kumadp.core.component import Stack

if TYPE_CHECKING:
    from collections.abc import Callable


class Part:
    """Reports that it is up, then does what was requested: stay, end, fail, or hang when it is cancelled."""

    def __init__(self, name: str, story: list[str], *, how: str = "stay") -> None:
        self.name = name
        self.end = asyncio.Event()
        self.release = asyncio.Event()
        self._story = story
        self._how = how

    async def run(self, up: Callable[[], None]) -> None:
        self._story.append(f"{self.name} starts")
        if self._how == "never up":
            return
        if self._how == "fail":
            raise OSError("no")
        up()
        try:
            await self.end.wait()
        finally:
            self._story.append(f"{self.name} ends")
            if self._how == "hang":
                await self.release.wait()


def stack_of(ended: list[tuple[str, str]]) -> Stack:
    return Stack(lambda name, error: ended.append((name, str(error))))


async def test_parts_are_left_in_reverse_order() -> None:
    story: list[str] = []
    stack = stack_of([])
    for name in ("readiness", "dns", "envoy"):
        await stack.enter(Part(name, story))
    await stack.leave()
    assert story[3:] == ["envoy ends", "dns ends", "readiness ends"]


async def test_a_part_that_does_not_stop_holds_nobody_else() -> None:
    story: list[str] = []
    stack = stack_of([])
    await stack.enter(Part("readiness", story))
    stuck = Part("dns", story, how="hang")
    await stack.enter(stuck, stop_deadline=0.01)
    async with asyncio.timeout(20):
        await stack.leave()
    assert story[-1] == "readiness ends"
    stuck.release.set()


async def test_ending_by_itself_is_reported_and_being_left_is_not() -> None:
    ended: list[tuple[str, str]] = []
    stack = stack_of(ended)
    part = Part("probes", [])
    await stack.enter(part)
    await stack.enter(Part("dns", []))
    part.end.set()
    async with asyncio.timeout(20):
        while not ended:
            await asyncio.sleep(0)
    await stack.leave()
    assert ended == [("probes", "None")]


async def test_entering_raises_what_the_part_raised() -> None:
    stack = stack_of([])
    with pytest.raises(OSError, match="no"):
        await stack.enter(Part("envoy", [], how="fail"))
    with pytest.raises(RuntimeError, match="before it was up"):
        await stack.enter(Part("envoy", [], how="never up"))
    await stack.leave()
