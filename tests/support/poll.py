"""Waiting with a deadline instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


def poll(probe: Callable[[], T | None], *, what: str, deadline: float = 20.0) -> T:
    """The first truthy answer of ``probe``; AssertionError naming ``what`` after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not seen within {deadline:.0f} s: {what}")
        time.sleep(0.02)


async def poll_async(probe: Callable[[], Awaitable[T | None]], *, what: str, deadline: float = 20.0) -> T:
    """As `poll`, for a coroutine function."""
    end = time.monotonic() + deadline
    while True:
        answer = await probe()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not seen within {deadline:.0f} s: {what}")
        await asyncio.sleep(0.02)
