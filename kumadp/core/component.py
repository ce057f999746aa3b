"""A component is one coroutine that reports when it is up and runs until it is cancelled.

Components are entered in order and left in reverse, each with its own deadline. If one ends by itself, before or after
it was up, the run loop gets an event: only the loop ends the process.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("kumadp.daemon")


class Component(Protocol):
    """One part of the daemon."""

    @property
    def name(self) -> str:
        """Name in log lines and in the status."""

    async def run(self, up: Callable[[], None]) -> None:
        """Work until cancelled; call ``up`` once when the component does its job. Clean up in ``finally``."""


class Stack:
    """The components that run, in the order they were entered.

    ``ended(name, error)`` is called when a component ends by itself (``error`` is None for a plain return).
    """

    def __init__(self, ended: Callable[[str, BaseException | None], None]) -> None:
        self._ended = ended
        self._running: list[tuple[str, asyncio.Task[None], float]] = []
        self._leaving = False

    def start(self, component: Component, *, stop_deadline: float = 5.0) -> asyncio.Event:
        """Start a component; the event is set once it is up. ``stop_deadline`` in seconds bounds leaving it."""
        is_up = asyncio.Event()
        task = asyncio.get_running_loop().create_task(component.run(is_up.set), name=component.name)
        self._running.append((component.name, task, stop_deadline))
        task.add_done_callback(lambda done: self._done(component.name, done))
        return is_up

    async def enter(self, component: Component, *, stop_deadline: float = 5.0) -> None:
        """Start a component and wait until it is up.

        Raises what the component raised when it ended first; RuntimeError when it returned without ever being up.
        """
        is_up = self.start(component, stop_deadline=stop_deadline)
        task = self._running[-1][1]
        waiter = asyncio.ensure_future(is_up.wait())
        try:
            await asyncio.wait({waiter, task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        if task.done() and not is_up.is_set():
            task.result()
            raise RuntimeError(f"{component.name} ended before it was up")

    async def leave(self) -> None:
        """Cancel all components in reverse order, each bounded by its deadline."""
        self._leaving = True
        while self._running:
            name, task, deadline = self._running.pop()
            if task.done():
                continue
            task.cancel()
            _, pending = await asyncio.wait({task}, timeout=deadline)
            if pending:
                log.warning("%s did not stop within %.1f s and is left behind", name, deadline)

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if not self._leaving and not task.cancelled():
            self._ended(name, error)
