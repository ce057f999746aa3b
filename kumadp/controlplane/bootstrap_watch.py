"""Checks whether Envoy still runs with the bootstrap that the control plane would give it now."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import TYPE_CHECKING, Any, Protocol

from kumadp.bootstrap.comparison import Restart, differences, restart_needed
from kumadp.bootstrap.fields import get
from kumadp.bootstrap.generation import generation_of
from kumadp.bootstrap.rewrite import rewrite_for_relay
from kumadp.errors import ControlPlaneRefused, ControlPlaneUnavailable, KumadpError
from kumadp.host.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kumadp.bootstrap.comparison import Difference
    from kumadp.bootstrap.generation import Generation
    from kumadp.bootstrap.prepare import Fetched
    from kumadp.controlplane.bootstrap_condition import BootstrapCondition
    from kumadp.core.context import Context

log = logging.getLogger("kumadp.controlplane")

# How long one check may take (seconds): the relay reports whether the control plane is reachable.
CHECK_WITHIN = 60.0
JITTER = 0.2
# After a rejection, before the next request: from and to (seconds).
REFUSED_PAUSE, LONGEST_REFUSED_PAUSE = 5.0, 60.0
# A path of no meaning, the same on both sides.
_SOCKET = "/relay"


class WatchObserver(Protocol):
    """Owns the bootstrap that is watched."""

    def take_first_request(self) -> asyncio.Task[Fetched] | None:
        """Return the request for the bootstrap that goes on while Envoy runs with an earlier one; None after that."""

    async def fetch(self, within: float | None) -> Fetched:
        """Request the bootstrap for so many seconds, None: until there is an answer. Raises KumadpError.

        Failures that show what to change are in the status.
        """

    def on_changed(self, fetched: Fetched, reasons: tuple[str, ...], *, first: bool) -> None:
        """Handle a bootstrap that takes a restart; ``first``: it is the first answer in this run."""

    async def on_confirmed(self) -> None:
        """Handle that the control plane stands by what Envoy runs with."""


def comparable(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a bootstrap without what may change at any time: token, CA and address of the control plane."""
    if get(tree, "dynamicResources", "adsConfig") is None:
        return dict(tree)
    return rewrite_for_relay(tree, _SOCKET).bootstrap


class BootstrapWatch:
    """Requests the bootstrap each ``bootstrap_check_interval`` (seconds, 0: never), and at once if it is stale.

    What runs keeps running, whatever the control plane answers: one of a newer version may reject the Dataplane.
    """

    name = "bootstrap watch"

    def __init__(self, context: Context, condition: BootstrapCondition, observer: WatchObserver) -> None:
        self._condition = condition
        self._context = context
        self._status = context.status
        self._observer = observer
        self._wake = asyncio.Event()
        self._restart = asyncio.Event()

    def wake(self) -> None:
        """Check now: the control plane is reachable."""
        self._wake.set()

    def restart_interval(self) -> None:
        """Check next after a whole interval, by the setting as it is now."""
        self._restart.set()

    async def run(self, up: Callable[[], None]) -> None:
        """Check until cancelled."""
        up()
        if (request := self._observer.take_first_request()) is not None:
            await self._until_fresh(request)
        while True:
            await self._pause()
            await self._check()

    async def _check(self) -> None:
        """Compare once."""
        try:
            await self._compare(await self._observer.fetch(CHECK_WITHIN))
        except ControlPlaneRefused as error:
            self._condition.note_rejection(error)
        except KumadpError as error:
            log.debug("no bootstrap: %s", error)

    async def _pause(self) -> None:
        while True:
            self._restart.clear()
            interval = self._context.settings.bootstrap_check_interval
            pause = interval * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads the load
            try:
                async with asyncio.timeout(pause if interval else None):
                    await self._restart.wait()
            except TimeoutError:
                return

    async def _until_fresh(self, request: asyncio.Task[Fetched]) -> None:
        """Wait for an answer; retry at once when the relay has a stream, not at the end of a pause."""
        pauses = Backoff(REFUSED_PAUSE, LONGEST_REFUSED_PAUSE)
        while True:
            answered = await self._answered(request)
            try:
                if answered:
                    await self._compare(request.result(), first=True)
                    return
            except ControlPlaneRefused as error:
                self._condition.note_rejection(error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pauses.wait())
            except ControlPlaneUnavailable:
                # The user's limit is one for a start; Envoy serves.
                pass
            except KumadpError as error:
                log.warning("no bootstrap yet: %s", error)
                return
            self._wake.clear()
            request = asyncio.create_task(self._observer.fetch(None), name="bootstrap request")

    async def _answered(self, request: asyncio.Task[Fetched]) -> bool:
        """Wait for the end of this request; False: it was cancelled, since the next one will be answered sooner."""
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({request, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
            if not request.done():
                request.cancel()
        return not request.cancelled() and request.done()

    async def _compare(self, fetched: Fetched, *, first: bool = False) -> None:
        self._condition.note_answer()
        present = self._context.bootstrap.fetched
        assert present is not None  # noqa: S101 - a control plane's always has one
        current, new = await asyncio.to_thread(lambda: (comparable(present.tree), comparable(fetched.tree)))
        differing = await asyncio.to_thread(differences, current, new)
        reasons = _reasons(differing, generation_of(present.tree), generation_of(fetched.tree))
        if restart_needed(differing) is Restart.NONE:
            self._status.facts.pop("restart_required", None)
            self._condition.note_change("")
            await self._observer.on_confirmed()
            return
        if self._status.facts.get("restart_required") != list(reasons):
            log.warning("the bootstrap has changed: %s", "; ".join(reasons))
        self._status.facts["restart_required"] = list(reasons)
        self._observer.on_changed(fetched, reasons, first=first)


def _reasons(changes: Sequence[Difference], present: Generation, newest: Generation) -> tuple[str, ...]:
    """Return one line for each change; one for all if the control plane is of another generation.

    Then most fields differ, and an Envoy behind the relay serves with either.
    """
    if changes and present is not newest:
        return (f"it is of Kuma {newest} now, and Envoy runs with that of Kuma {present}",)
    return tuple(f"{change.path}: {change.reason}" for change in changes)
