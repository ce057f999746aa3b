"""Pushes metrics to OpenTelemetry backends, each in its own time: what a scrape by policy has, read anew each time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from kumadp.host.reexec.handover import HELD_SIGNALS
from kumadp.otel.export_types import CompressedPiece, ExportFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from kumadp.exposition.reader import Piece
    from kumadp.otel.export_types import ExportOptions
    from kumadp.otel.exporter import Exporter

# Operators set the level of the metrics' log by this name.
log = logging.getLogger("kumadp.metrics")

# How long the sources of a push may take (seconds): as long as those of a scrape.
_READ_SECONDS = 10.0


class Pusher:
    """Pushes to every socket that `apply` names, while it runs.

    ``said`` gives scopes and pieces of now, within so many seconds. ``concern`` hears what is wrong with a socket, and
    "" when nothing is any more. At the end everything is pushed once more, within ``flush`` seconds.
    """

    name = "OpenTelemetry push"

    def __init__(
        self,
        said: Callable[[float], AsyncIterator[tuple[str, Piece]]],
        options: Callable[[], ExportOptions],
        *,
        concern: Callable[[str, str], None],
        flush: float,
    ) -> None:
        self._said = said
        self._options = options
        self._concern = concern
        self._flush = flush
        self._targets: dict[str, _Target] = {}
        self._over = False

    async def run(self, up: Callable[[], None]) -> None:
        """Push until cancelled, and once more then."""
        up()
        try:
            await asyncio.Event().wait()
        finally:
            self._over = True
            await asyncio.gather(*(target.finish(self._flush) for target in self._targets.values()))
            self._targets.clear()

    def apply(self, periods: Mapping[str, float]) -> None:
        """Push to these sockets, by path, every so many seconds, and to no others; a period that stays goes on."""
        if self._over:
            return
        for path, target in list(self._targets.items()):
            if periods.get(path) != target.period:
                del self._targets[path]
                target.stop()
                if path not in periods:
                    log.info("metrics are not pushed to %s any more", path)
                self._concern(path, "")
        for path, period in periods.items():
            if path not in self._targets:
                self._targets[path] = _Target(path, period, self._said, self._options, self._concern)
                log.info("metrics are pushed to %s every %g s", path, period)

    def status(self) -> dict[str, object]:
        """By path, JSON types; times in seconds since 1970, or in seconds."""
        return {path: target.status() for path, target in self._targets.items()}


class _Target:
    """One socket: a task for its rounds, and a thread in which the SDK works, which is used to waiting."""

    def __init__(
        self,
        path: str,
        period: float,
        said: Callable[[float], AsyncIterator[tuple[str, Piece]]],
        options: Callable[[], ExportOptions],
        concern: Callable[[str, str], None],
    ) -> None:
        self.period = period
        self._path = path
        self._said = said
        self._options = options
        self._concern = concern
        # A thread that took a signal which the main thread holds back would lose it over execve(2).
        self._thread = ThreadPoolExecutor(1, "otel push", signal.pthread_sigmask, (signal.SIG_BLOCK, HELD_SIGNALS))
        self._exporter: Exporter | None = None
        self._stopped = asyncio.Event()
        self._gone = False
        self._pushed = self._failed = 0
        self._took = 0.0
        self._last: float | None = None
        self._why = ""
        self._task = asyncio.create_task(self._run(), name=f"push to {path}")

    def stop(self) -> None:
        """Push nothing more."""
        self._gone = True
        self._task.cancel()
        if self._exporter is not None:
            # What is on its way ends at once.
            self._exporter.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def finish(self, seconds: float) -> None:
        """Push once more, within so many seconds, and nothing more then."""
        self._stopped.set()
        _, pending = await asyncio.wait({self._task}, timeout=seconds)
        if pending:
            log.warning("metrics could not be pushed to %s once more within %g s", self._path, seconds)
        self.stop()
        await asyncio.wait({self._task})

    def status(self) -> dict[str, object]:
        return {
            "period": self.period,
            "pushed": self._pushed,
            "failed": self._failed,
            "last_push_at": self._last,
            "last_took": round(self._took, 6),
            "last_failure": self._why,
        }

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._stopped.is_set():
            due = max(due + self.period, loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._stopped.wait()
            await self._round()

    async def _round(self) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            kept = [
                CompressedPiece(scope, piece.family, zlib.compress(piece.samples, 1))
                async for scope, piece in self._said(_READ_SECONDS)
                if piece.samples
            ]
            await loop.run_in_executor(self._thread, self._push, kept)
        except Exception as error:
            self._failed += 1
            known = isinstance(error, ExportFailed)
            self._why = str(error) if known else f"a bug in kumadp: {type(error).__name__}: {error}"
        else:
            self._pushed += 1
            self._last, self._why = time.time(), ""
        self._took = loop.time() - since
        self._concern(self._path, self._why)

    def _push(self, kept: list[CompressedPiece]) -> None:
        from kumadp.otel.exporter import Exporter

        options = self._options()
        if self._exporter is None:
            self._exporter = Exporter(self._path, options)
        if self._gone:
            # While it was imported.
            self._exporter.close()
            raise ExportFailed("it is not wanted any more")
        kept.reverse()
        self._exporter.push(_used_up(kept), max(self.period, options.timeout))


def _used_up(kept: list[CompressedPiece]) -> Iterator[CompressedPiece]:
    """From its end, so that what was pushed is not held any more."""
    while kept:
        yield kept.pop()
