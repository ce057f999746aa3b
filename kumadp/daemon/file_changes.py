"""Files that the settings name and that change while kumadp runs: noticed, logged in one line, and used."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.core.events import Requested
from kumadp.core.part import Part
from kumadp.errors import ControlPlaneRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.core.context import Context

log = logging.getLogger("kumadp.daemon")

# What belongs together is often written one after the other, and an editor writes in steps (seconds).
_SETTLE = 0.3


class FileChangesPart(Part):
    """Watches token and CA, which are read for each connection, and Dataplane and settings, which take a reload.

    ``read_token`` reads the token as it is now; it may block and raise ControlPlaneRefused. None: without a token.
    ``on_credentials`` is called when token or CA have changed.
    """

    name = "files"

    def __init__(
        self,
        context: Context,
        read_token: Callable[[], object] | None = None,
        on_credentials: Callable[[], None] | None = None,
    ) -> None:
        self._context = context
        self._read_token = read_token
        self._on_credentials = on_credentials
        self._digests: dict[Path, bytes] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._comparing: asyncio.Task[None] | None = None

    async def started(self) -> None:
        """Watch from now on."""
        self._context.stack.start(self)

    async def run(self, up: Callable[[], None]) -> None:
        """Watch until cancelled."""
        from kumadp.host.file_watch import FileWatch

        self._digests = await asyncio.to_thread(_contents, self._paths())
        self._watch = FileWatch(self._paths(), self._may_have_changed)
        try:
            await self._watch.run(up)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._comparing is not None:
                self._comparing.cancel()

    async def before_reload(self) -> None:
        """Take the present content as known: a reload reads it."""
        if self._digests:
            self._digests = await asyncio.to_thread(_contents, self._paths())
            self._watch.follow()

    def _for_connections(self) -> tuple[Path, ...]:
        settings = self._context.settings
        return _named(settings.token_path, settings.ca_cert_file)

    def _for_envoy(self) -> tuple[Path, ...]:
        # Standalone mode follows its files itself.
        return _named(self._context.config, self._context.settings.dataplane_file)

    def _paths(self) -> tuple[Path, ...]:
        return (*self._for_connections(), *self._for_envoy())

    def _may_have_changed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_SETTLE, self._start_comparing)

    def _start_comparing(self) -> None:
        if self._comparing is None or self._comparing.done():
            self._comparing = asyncio.get_running_loop().create_task(self._compare())
        else:
            self._may_have_changed()

    async def _compare(self) -> None:
        self._watch.follow()
        contents = await asyncio.to_thread(_contents, self._paths())
        # One that is gone for a moment is being replaced; its going is no change.
        changed = [path for path, content in contents.items() if content and content != self._digests.get(path)]
        self._digests |= {path: contents[path] for path in changed}
        if used := [str(path) for path in self._for_connections() if path in changed]:
            log.info("%s changed: used from the next connection to the control plane on", " and ".join(used))
            await self._check_token()
            if self._on_credentials is not None:
                self._on_credentials()
        if for_envoy := [str(path) for path in self._for_envoy() if path in changed]:
            why = f"{' and '.join(for_envoy)} changed"
            if self._context.settings.on_file_change == "reload":
                self._context.post(Requested("reload", why))
            else:
                log.info("%s: used with the next reload", why)

    async def _check_token(self) -> None:
        """Read a new token, for its end; a warning about a file that is wrong comes before it is needed."""
        if self._read_token is None:
            return
        try:
            await asyncio.to_thread(self._read_token)
        except (ControlPlaneRefused, OSError) as error:
            self._context.status.set_warning("token file", str(error))
        else:
            self._context.status.set_warning("token file", "")


def _named(*names: str) -> tuple[Path, ...]:
    return tuple(Path(name) for name in names if name and name != "-")


def _contents(paths: tuple[Path, ...]) -> dict[Path, bytes]:
    """A digest of each file, empty where it cannot be read. May block."""
    import hashlib

    contents = {}
    for path in paths:
        digest = b""
        with contextlib.suppress(OSError):
            digest = hashlib.sha256(path.read_bytes()).digest()
        contents[path] = digest
    return contents
