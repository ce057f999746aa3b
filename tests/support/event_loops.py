"""Tests that run on both event loops that kumadp may run on."""

from __future__ import annotations

import asyncio
import functools
import inspect
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make of a coroutine function a test with the parameter ``loop``."""

    @functools.wraps(test)
    def run(loop: str, **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test(**arguments))

    signature = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), loop])  # type: ignore[attr-defined]
    marked: Callable[..., None] = pytest.mark.parametrize("loop", LOOPS)(run)
    return marked


class _BusyReader(asyncio.Protocol):
    def __init__(self, seconds: float, begin: Callable[[], object]) -> None:
        self._seconds = seconds
        self._begin = begin
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        del data
        self._begin()
        time.sleep(self._seconds)
        self.ended.set()


async def busy_in_a_read(seconds: float, begin: Callable[[], object]) -> None:
    """Call ``begin``, and keep the loop busy while it reads a socket; uvloop runs timers before it reads another."""
    other, ours = socket.socketpair()
    with other:
        transport, reader = await asyncio.get_running_loop().create_connection(
            lambda: _BusyReader(seconds, begin), sock=ours
        )
        other.send(b"x")
        await reader.ended.wait()
        transport.close()
