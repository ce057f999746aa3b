"""The pipe: which backends are served. How one is served is `kumadp.otel.served`, imported with the first one."""

from __future__ import annotations

import asyncio
import logging
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from kumadp.errors import WorkDirError
from kumadp.host.net.serve import bind_unix
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.socket_names import OTEL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from kumadp.otel.routes import Route
    from kumadp.otel.served import Served

log = logging.getLogger("kumadp.otel")


# So long after a re-execution dynamic configuration may tell of a backend that was served before (seconds).
_TOLD_AGAIN = 30.0


class Wanted(NamedTuple):
    """A backend: its name, the socket at which Envoy finds it, and where each signal goes."""

    name: str
    socket: Path
    routes: Mapping[str, Route]


class Pipe:
    """All backends. ``folder`` is where sockets may be; ``concern`` hears what is wrong with one, "" when nothing is.

    `apply` is to be called while it runs.
    """

    name = "OpenTelemetry pipe"

    def __init__(self, folder: Path, concern: Callable[[str, str], None]) -> None:
        self._folder = folder
        # Those of the program before us: who connects waits until we are told of their backends again.
        self._left = {path: bind_unix(path) for path in inherited.paths(folder, OTEL)}
        self._concern = concern
        self._served: dict[Path, Served] = {}

    async def run(self, up: Callable[[], None]) -> None:
        """Serve what is wanted until cancelled."""
        up()
        forgetting = asyncio.get_running_loop().call_later(_TOLD_AGAIN, self._forget)
        try:
            await asyncio.Event().wait()
        finally:
            forgetting.cancel()
            self._forget()
            await asyncio.gather(*(served.close() for served in self._served.values()))
            self._served.clear()

    async def apply(self, wanted: Sequence[Wanted]) -> None:
        """Serve these and no others. Raises WorkDirError where one cannot be; the others are."""
        desired = {one.socket: one for one in wanted}
        gone = [path for path, served in self._served.items() if desired.get(path) != served.wanted]
        ended = [self._served.pop(path) for path in gone]
        await asyncio.gather(*(served.close() for served in ended))
        for served in ended:
            log.info("OpenTelemetry backend %s: its socket is closed", served.wanted.name or served.wanted.socket.name)
            self._concern(served.label, "")
        failures = []
        for path, one in desired.items():
            if path in self._served:
                continue
            try:
                self._served[path] = await self._start(one)
            except WorkDirError as error:
                failures.append(str(error))
        self._forget()
        if failures:
            raise WorkDirError("; ".join(failures))

    def sends(self, socket: Path, signal: str) -> bool:
        """Whether this signal of the backend with this socket goes anywhere."""
        served = self._served.get(socket)
        return served is not None and not served.wanted.routes[signal].why_not

    def status(self) -> dict[str, object]:
        """By socket's name, JSON types."""
        return {served.wanted.socket.name: served.status() for served in self._served.values()}

    def _forget(self) -> None:
        """Nobody has told of these again."""
        for path, sock in self._left.items():
            sock.close()
            path.unlink(missing_ok=True)
        self._left.clear()

    async def _start(self, wanted: Wanted) -> Served:
        path = wanted.socket
        if path.parent != self._folder or not path.name.endswith(".sock"):
            # Whatever was there before is replaced.
            raise WorkDirError(f"the socket {path} of an OpenTelemetry backend is not in {self._folder}")
        module = await asyncio.to_thread(import_module, "kumadp.otel.served")
        sock = self._left.pop(path, None) or await asyncio.to_thread(bind_unix, path)
        served: Served = module.Served(wanted, sock, self._concern)
        await served.start()
        ways = ", ".join(f"{name} to {route}" for name, route in wanted.routes.items() if not route.why_not)
        log.info("OpenTelemetry backend %s: %s", wanted.name or path.name, ways or "no signal can be sent")
        return served
