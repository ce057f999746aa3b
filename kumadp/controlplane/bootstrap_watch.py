"""Looks whether Envoy still runs with the bootstrap that the control plane would give it now."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from kumadp.bootstrap.comparison import Restart, differences, restart_needed
from kumadp.bootstrap.fields import get
from kumadp.bootstrap.rewrite import rewrite_for_relay
from kumadp.errors import ControlPlaneRefused, ControlPlaneUnavailable, KumadpError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kumadp.controlplane.bootstrap_client import Fetched
    from kumadp.core.status import Status
    from kumadp.daemon.sources import KumaSource

log = logging.getLogger("kumadp.controlplane")

# How long one look may take (seconds): the relay tells whether the control plane is there.
GRACE_PERIOD = 60.0
JITTER = 0.2
# After a refusal, before it is asked again (seconds).
REFUSED_PAUSE = 5.0
# A path of no meaning, the same on both sides.
_SOCKET = "/relay"


def comparable(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A bootstrap without what may change at any time: token, CA and address of the control plane."""
    if get(tree, "dynamicResources", "adsConfig") is None:
        return dict(tree)
    return rewrite_for_relay(tree, _SOCKET).bootstrap


class BootstrapWatch:
    """Asks for the bootstrap every ``interval()`` seconds (0: never), and at once where the present one is stale.

    ``current`` is what Envoy runs with; ``changed`` hears of another one that takes a restart, why, and whether it is
    the first answer of this run; ``fresh`` that the control plane stands by the present one. ``refused`` hears a
    refusal for good.
    """

    name = "bootstrap watch"

    def __init__(
        self,
        source: KumaSource,
        status: Status,
        *,
        interval: Callable[[], float],
        current: Callable[[], Fetched],
        changed: Callable[[Fetched, tuple[str, ...], bool], None],
        fresh: Callable[[], Awaitable[None]],
        refused: Callable[[ControlPlaneRefused], None],
    ) -> None:
        self._source = source
        self._status = status
        self._interval = interval
        self._current = current
        self._changed = changed
        self._fresh = fresh
        self._refused = refused
        self._wake = asyncio.Event()
        self._anew = asyncio.Event()
        self._refused_since: float | None = None

    def wake(self) -> None:
        """Look now: the control plane is there."""
        self._wake.set()

    async def run(self, up: Callable[[], None]) -> None:
        """Look until cancelled."""
        up()
        try:
            if self._source.later is not None:
                await self._until_fresh(self._source.later)
            while True:
                await self._pause()
                with contextlib.suppress(KumadpError):
                    await self._look(await self._source.client.fetch(_quietly, GRACE_PERIOD))
        finally:
            if self._source.later is not None:
                self._source.later.cancel()

    def start_anew(self) -> None:
        """The next look is a whole interval away, by the setting as it is now."""
        self._anew.set()

    async def _pause(self) -> None:
        while True:
            self._anew.clear()
            interval = self._interval()
            pause = interval * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads the load
            try:
                async with asyncio.timeout(pause if interval else None):
                    await self._anew.wait()
            except TimeoutError:
                return

    async def _until_fresh(self, asking: asyncio.Task[Fetched]) -> None:
        """Wait for an answer; one that the relay has a stream from is asked at once, not at the end of a pause."""
        while True:
            waking = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait({asking, waking}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waking.cancel()
            if not asking.done():
                self._wake.clear()
                asking.cancel()
                asking = self._ask()
                continue
            try:
                await self._look(asking.result(), first=True)
            except ControlPlaneRefused as error:
                self._note_refusal(error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), REFUSED_PAUSE)
                self._wake.clear()
                asking = self._ask()
                continue
            except ControlPlaneUnavailable:
                # The user's limit is one for a start; Envoy serves.
                asking = self._ask()
                continue
            except KumadpError as error:
                log.warning("no bootstrap yet: %s", error)
            return

    def _ask(self) -> asyncio.Task[Fetched]:
        self._source.later = asyncio.create_task(self._source.client.fetch(_quietly, None))
        return self._source.later

    def _note_refusal(self, error: ControlPlaneRefused) -> None:
        """Tell it; it is for good only in the end, as this control plane had us before."""
        from kumadp.relay.grace_period import ESTABLISHED_GRACE_PERIOD

        now = time.monotonic()
        self._refused_since = since = now if self._refused_since is None else self._refused_since
        self._status.set_warning("bootstrap", str(error))
        if now - since >= ESTABLISHED_GRACE_PERIOD:
            self._refused(error)

    async def _look(self, found: Fetched, *, first: bool = False) -> None:
        before, after = await asyncio.to_thread(
            lambda: (comparable(self._current().tree), comparable(found.tree)),
        )
        differing = await asyncio.to_thread(differences, before, after)
        reasons = tuple(f"{one.path}: {one.reason}" for one in differing)
        if restart_needed(differing) is Restart.NONE:
            self._status.facts.pop("restart_required", None)
            self._status.set_warning("bootstrap", "")
            await self._fresh()
            return
        if self._status.facts.get("restart_required") != list(reasons):
            log.warning("the bootstrap has changed: %s", "; ".join(reasons))
        self._status.facts["restart_required"] = list(reasons)
        self._changed(found, reasons, first)


def _quietly(reason: str) -> None:
    log.debug("no bootstrap: %s", reason)
