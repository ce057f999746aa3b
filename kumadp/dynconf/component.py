"""Component that polls dynamic configuration; each path has its own task, so that no path delays another."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.dynconf.poller import BodyPoller
from kumadp.resources.dynconf_bodies import BODIES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from kumadp.resources.dynconf_bodies import BodyHandler


class PollOptions(Struct, frozen=True):
    """Timing of the polls; all times in seconds.

    ``changes_announced``: `DynamicConfiguration.poll_now` is called after each change of Envoy's listeners, so that
    regular polls may be rare.
    """

    interval: float
    changes_announced: bool = False
    # Of a response, and of a handler: kuma-dp 2.14 gives its client as much.
    deadline: float = 5.0
    # Used if the responses have no etags, so that each is a whole body (kuma-dp 2.8 polls no more often), and between
    # announcements, in case one was missed.
    long_interval: float = 10.0
    # Number of polls at the short interval after an announcement: Envoy takes its time to change a listener.
    short_polls: int = 5


class DynamicConfiguration:
    """Polls every path of `BODIES` at the Unix socket ``socket`` while an Envoy serves.

    ``handlers`` own the bodies, by path: a handler is called with the decoded body when it is new or changed, with None
    when the policy behind it was removed, and again in the next round if it raised or missed its deadline. It may be
    called with a body that it has already. A body without a handler is followed for the status only. ``set_warning`` is
    called with a path and a text, empty when the path is well again. ``on_absent`` is called with a path at which
    nothing is served and whose handler has nothing to remove, each time that this is seen.
    """

    name = "dynamic configuration"

    def __init__(
        self,
        socket: Path,
        options: PollOptions,
        handlers: Mapping[str, BodyHandler] | None = None,
        *,
        set_warning: Callable[[str, str], None],
        on_absent: Callable[[str], None] = lambda _path: None,
    ) -> None:
        self._socket = socket
        self._options = options
        self._envoy_serves = asyncio.Event()
        path_handlers = handlers or {}
        self._paths = [
            _Path(
                path,
                BodyPoller(
                    path,
                    socket,
                    path_handlers.get(path),
                    options.deadline,
                    set_warning=partial(set_warning, path),
                    on_absent=partial(on_absent, path),
                ),
            )
            for path in BODIES
        ]

    async def run(self, up: Callable[[], None]) -> None:
        """Poll all paths until cancelled."""
        self._start = asyncio.get_running_loop().time()
        tasks = [asyncio.create_task(self._poll_forever(path), name=f"dynconf {path.name}") for path in self._paths]
        up()
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for path in self._paths:
                path.poller.interrupt()

    def on_envoy(self, serves: bool) -> None:
        """Poll at once when an Envoy begins to serve; do not poll without one."""
        if not serves:
            self._envoy_serves.clear()
            for path in self._paths:
                path.poller.interrupt()
            return
        self._envoy_serves.set()
        self.poll_now()

    def poll_now(self) -> None:
        """Poll all paths at once: something may have changed."""
        for path in self._paths:
            path.short_polls = self._options.short_polls
            path.wake.set()

    def status(self) -> dict[str, object]:
        """Return JSON types; times in seconds since 1970."""
        return {
            "socket": str(self._socket),
            "asks": self._envoy_serves.is_set(),
            "paths": {path.name: path.poller.status() for path in self._paths},
        }

    async def _poll_forever(self, path: _Path) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._envoy_serves.wait()
            path.wake.clear()
            await path.poller.poll()
            interval = self._interval(path)
            # In step with the other paths: one wake-up of the loop instead of three.
            delay = interval - (loop.time() - self._start) % interval
            timer = loop.call_later(delay, path.wake.set)
            try:
                await path.wake.wait()
            finally:
                timer.cancel()

    def _interval(self, path: _Path) -> float:
        path.short_polls = max(path.short_polls - 1, 0)
        interval = self._options.interval
        if not path.poller.settled:
            return interval
        may_be_long = path.poller.without_etags or (self._options.changes_announced and not path.short_polls)
        return max(interval, self._options.long_interval) if may_be_long else interval


class _Path:
    """A path, its poller, and the event that wakes its task."""

    def __init__(self, name: str, poller: BodyPoller) -> None:
        self.name = name
        self.poller = poller
        self.wake = asyncio.Event()
        self.short_polls = 0
