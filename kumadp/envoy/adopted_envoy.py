"""An Envoy that an earlier kumadp started: what it recorded or handed over of it, and its processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from kumadp.process.child import Child


Scope = Literal["", "inbound", "all"]
"""What is drained while everything keeps running."""


class EnvoyState(Struct, frozen=True):
    """The state of the epochs that another kumadp needs to adopt them.

    ``retiring`` may have died early, with the fallback in its place. ``retires_at``: when it must end, by the monotonic
    clock, which is the host's. ``locked``: why hot restart is locked, or "". ``admin`` is the text of its
    `AdminAddress`, empty if an older kumadp wrote this. ``coming``: the next epoch, which had not taken over by then;
    the current one has ``shutdown`` seconds after that.
    """

    serial: int
    epoch: int
    blind: bool
    current: int
    retiring: int | None = None
    retires_at: float = 0.0
    locked: str = ""
    generation: int = 0
    protocol: str = ""
    workers: int = 0
    admin: str = ""
    coming: int | None = None
    shutdown: float = 0.0


class EnvoySection(Struct, frozen=True):
    """What is handed over: the epochs, and how Envoy was started, to be compared."""

    state: EnvoyState
    started_as: tuple[str, ...] = ()
    inbound_drained: bool = False
    """As older programs hand it over."""
    drained: Scope = ""
    drained_at: float = 0.0


class DrainRecord(Struct, frozen=True):
    """What is drained while everything keeps running, for a kumadp that adopts Envoy."""

    scope: Scope
    since: float


class AdoptedEnvoy(Struct):
    """Envoys that run already: the exported state, and the processes themselves.

    ``fallback`` is that for `dead_parent`, if it answers already (`kumadp.envoy.retirement.begin_fallback`).
    """

    state: EnvoyState
    current: Child
    retiring: Child | None = None
    fallback: asyncio.Task[None] | None = None

    @property
    def children(self) -> tuple[Child, ...]:
        """The current one, and one that drains."""
        return (self.current, self.retiring) if self.retiring is not None else (self.current,)

    @property
    def dead_parent(self) -> int | None:
        """The old epoch's pid if it died and the new one will still send it a message."""
        from kumadp.envoy.retirement import ABORTS_AFTER

        waits = self.retiring is None and time.monotonic() < self.state.retires_at + ABORTS_AFTER
        return self.state.retiring if waits else None

    def begin_fallback(self, directory: Callable[[], Path]) -> None:
        """Begin to answer for `dead_parent`, if there is one and nobody does, with the files in a directory."""
        if self.fallback is None and self.dead_parent is not None and self.state.serial >= 0:
            from kumadp.envoy.base_id import BaseIdFiles
            from kumadp.envoy.retirement import begin_fallback

            files = BaseIdFiles(directory(), self.state.serial)
            self.fallback = begin_fallback(files, self.state.epoch - 1, self.state.retires_at)

    def end_fallback(self) -> None:
        """Answer no longer."""
        if self.fallback is not None:
            self.fallback.cancel()
