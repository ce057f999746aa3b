"""Files that the settings name and that change while kumadp runs: seen, told in one line, and taken."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.daemon.loop import Asked
from kumadp.errors import ControlPlaneRefused
from kumadp.host.file_watch import FileWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.controlplane.bootstrap_client import KumaClient
    from kumadp.core.context import Run

log = logging.getLogger("kumadp.daemon")

# What belongs together is often written one after the other, and an editor writes in steps (seconds).
_SETTLE = 0.3


class ChangedFiles:
    """Token and CA, which are read for each connection; Dataplane and settings, for which a reload is asked.

    `seen` says that all of them have just been read.
    """

    name = "files"

    def __init__(self, run: Run, client: KumaClient | None) -> None:
        self._run = run
        self._client = client
        self._known: dict[Path, bytes] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    async def run(self, up: Callable[[], None]) -> None:
        """Watch until cancelled."""
        self._known = await asyncio.to_thread(_contents, self._paths())
        self._watch = FileWatch(self._paths(), self._may_have_changed)
        try:
            await self._watch.run(up)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._looking is not None:
                self._looking.cancel()

    async def seen(self) -> None:
        """What is there now is known: somebody else reads it."""
        if self._known:
            self._known = await asyncio.to_thread(_contents, self._paths())
            self._watch.follow()

    def _for_connections(self) -> tuple[Path, ...]:
        settings = self._run.settings
        return _named(settings.token_path, settings.ca_cert_file)

    def _for_envoy(self) -> tuple[Path, ...]:
        # Standalone mode follows its files itself.
        return _named(self._run.config, self._run.settings.dataplane_file)

    def _paths(self) -> tuple[Path, ...]:
        return (*self._for_connections(), *self._for_envoy())

    def _may_have_changed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_SETTLE, self._look)

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._find_out())
        else:
            self._may_have_changed()

    async def _find_out(self) -> None:
        self._watch.follow()
        found = await asyncio.to_thread(_contents, self._paths())
        # One that is gone for a moment is being replaced; its going is no change.
        changed = [path for path, content in found.items() if content and content != self._known.get(path)]
        self._known |= {path: found[path] for path in changed}
        if used := [str(path) for path in self._for_connections() if path in changed]:
            log.info("%s changed: used from the next connection to the control plane on", " and ".join(used))
            await self._check_token()
        if taken := [str(path) for path in self._for_envoy() if path in changed]:
            why = f"{' and '.join(taken)} changed"
            if self._run.settings.on_file_change == "reload":
                self._run.post(Asked("reload", why))
            else:
                log.info("%s: taken with the next reload", why)

    async def _check_token(self) -> None:
        """Have the end of a new token known; a file that is wrong is told before it is needed."""
        if self._client is None:
            return
        try:
            await asyncio.to_thread(self._client.token)
        except (ControlPlaneRefused, OSError) as error:
            self._run.status.set_warning("token file", str(error))
        else:
            self._run.status.set_warning("token file", "")


def _named(*names: str) -> tuple[Path, ...]:
    return tuple(Path(name) for name in names if name and name != "-")


def _contents(paths: tuple[Path, ...]) -> dict[Path, bytes]:
    """A digest of each file, empty where it cannot be read. May block."""
    found = {}
    for path in paths:
        digest = b""
        with contextlib.suppress(OSError):
            digest = hashlib.sha256(path.read_bytes()).digest()
        found[path] = digest
    return found
