"""Dynamic configuration as a component: every path is followed by itself, so that none waits for another."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from kumadp.dynconf.follower import Follower
from kumadp.resources.dynconf_bodies import BODIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from kumadp.resources.dynconf_bodies import BodyHandler

# Without etags the whole body comes each time: no more often than that kuma-dp 2.8 asks (seconds). As often where every
# change is told, in case one was not.
LONG_PAUSE = 10.0
# So often it is asked in short pauses after something was told: Envoy takes its time to change a listener.
ROUNDS_UNTIL_CALM = 5
# How long an answer may take, and a handler (seconds): kuma-dp 2.14 gives its client as much.
DEADLINE = 5.0


class DynamicConfiguration:
    """Asks Envoy at ``socket`` for every path of `BODIES`, each ``interval`` seconds, while there is an Envoy.

    ``handlers`` own the bodies, by path: one is called with the decoded body when it is new or another one, with None
    when the policy behind it was removed, and again in the next round where it raised or was not done in time. It may
    be called with what it has already. A body without an owner is followed for the status alone. ``concern`` hears
    what is wrong with a path, and "" when nothing is any more. ``on_absent`` is called with a path at which nothing is
    served and whose owner has nothing, each time that this is seen. ``told``: each change of Envoy's listeners
    is reported by `wake`, and so requests in between are rare.
    """

    name = "dynamic configuration"

    def __init__(
        self,
        socket: Path,
        interval: float,
        handlers: Mapping[str, BodyHandler] | None = None,
        *,
        concern: Callable[[str, str], None],
        on_absent: Callable[[str], None] = lambda _path: None,
        told: bool = False,
        deadline: float = DEADLINE,
    ) -> None:
        self._socket = socket
        self._interval = interval
        self._told = told
        self._there = asyncio.Event()
        owners = handlers or {}
        self._lines = [
            _Line(
                path,
                Follower(path, socket, owners.get(path), deadline, _about(path, concern), partial(on_absent, path)),
            )
            for path in BODIES
        ]

    async def run(self, up: Callable[[], None]) -> None:
        """Follow all of them until cancelled."""
        self._start = asyncio.get_running_loop().time()
        following = [asyncio.create_task(self._follow(line), name=f"dynconf {line.path}") for line in self._lines]
        up()
        try:
            await asyncio.gather(*following)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
            for line in self._lines:
                line.follower.interrupt()

    def envoy(self, there: bool) -> None:
        """Whether an Envoy serves: nothing is asked without one, and at once where one has just begun to."""
        if not there:
            self._there.clear()
            for line in self._lines:
                line.follower.interrupt()
            return
        self._there.set()
        self.wake()

    def wake(self) -> None:
        """Ask now: something may have changed."""
        for line in self._lines:
            line.rounds = ROUNDS_UNTIL_CALM
            line.wake.set()

    def status(self) -> dict[str, object]:
        """JSON types; times in seconds since 1970."""
        return {
            "socket": str(self._socket),
            "asks": self._there.is_set(),
            "paths": {line.path: line.follower.status() for line in self._lines},
        }

    async def _follow(self, line: _Line) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._there.wait()
            line.wake.clear()
            await line.follower.ask()
            pause = self._pause(line)
            # In step with the others: one timer of the loop instead of three.
            due = pause - (loop.time() - self._start) % pause
            timer = loop.call_later(due, line.wake.set)
            try:
                await line.wake.wait()
            finally:
                timer.cancel()

    def _pause(self, line: _Line) -> float:
        line.rounds = max(line.rounds - 1, 0)
        if not line.follower.settled:
            return self._interval
        long = line.follower.plain or (self._told and not line.rounds)
        return max(self._interval, LONG_PAUSE) if long else self._interval


class _Line:
    """A path, who follows it, and what wakes him."""

    def __init__(self, path: str, follower: Follower) -> None:
        self.path = path
        self.follower = follower
        self.wake = asyncio.Event()
        self.rounds = 0


def _about(path: str, concern: Callable[[str, str], None]) -> Callable[[str], None]:
    return lambda text: concern(path, text)
