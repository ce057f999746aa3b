"""Push of metrics to OpenTelemetry backends, each at its own period; the metrics are read again for each push."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
import zlib
from typing import TYPE_CHECKING

from kumadp.host.reexec.handover import HELD_SIGNALS
from kumadp.host.thread_pool import ThreadPool
from kumadp.otel.export_types import CompressedPiece, ExportFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from kumadp.exposition.reader import Piece
    from kumadp.otel.export_types import ExportOptions
    from kumadp.otel.exporter import Exporter

    # Returns scopes and pieces of the current metrics, read within so many seconds.
    ReadPieces = Callable[[float], AsyncIterator[tuple[str, Piece]]]

# Operators set the level of the metrics' log by this name.
log = logging.getLogger("kumadp.metrics")

# How long the sources of a push may take (seconds): as long as those of a scrape.
_READ_SECONDS = 10.0


class Pusher:
    """Pushes to every socket that `apply` names, while `run` runs, and once more within ``flush`` seconds at its end.

    ``set_warning`` is called with the path of a socket and a text, empty when the last push succeeded.
    """

    name = "OpenTelemetry push"

    def __init__(
        self,
        read_pieces: ReadPieces,
        options: Callable[[], ExportOptions],
        *,
        set_warning: Callable[[str, str], None],
        flush: float,
    ) -> None:
        self._read_pieces = read_pieces
        self._options = options
        self._set_warning = set_warning
        self._flush = flush
        self._targets: dict[str, _PushTarget] = {}
        self._stopped = False

    async def run(self, up: Callable[[], None]) -> None:
        """Push until cancelled, then push once more."""
        up()
        try:
            await asyncio.Event().wait()
        finally:
            self._stopped = True
            await asyncio.gather(*(target.finish(self._flush) for target in self._targets.values()))
            self._targets.clear()

    def apply(self, periods: Mapping[str, float]) -> None:
        """Push to these sockets only, given as paths with their periods in seconds; targets without a change stay."""
        if self._stopped:
            return
        for path, target in list(self._targets.items()):
            if periods.get(path) != target.period:
                del self._targets[path]
                target.stop()
                if path not in periods:
                    log.info("metrics are not pushed to %s any more", path)
                self._set_warning(path, "")
        for path, period in periods.items():
            if path not in self._targets:
                self._targets[path] = _PushTarget(path, period, self._read_pieces, self._options, self._set_warning)
                log.info("metrics are pushed to %s every %g s", path, period)

    def status(self) -> dict[str, object]:
        """Return JSON types by path; times in seconds since 1970, durations in seconds."""
        return {path: target.status() for path, target in self._targets.items()}


class _PushTarget:
    """One socket, with a task for its rounds, and a thread for the SDK, whose calls block."""

    def __init__(
        self,
        path: str,
        period: float,
        read_pieces: ReadPieces,
        options: Callable[[], ExportOptions],
        set_warning: Callable[[str, str], None],
    ) -> None:
        self.period = period
        self._path = path
        self._read_pieces = read_pieces
        self._options = options
        self._set_warning = set_warning
        # A signal that the main thread holds back would be lost over execve(2) if this thread received it.
        self._thread = ThreadPool(1, "otel push", signal.pthread_sigmask, (signal.SIG_BLOCK, HELD_SIGNALS))
        self._exporter: Exporter | None = None
        self._finishing = asyncio.Event()
        self._stopped = False
        self._pushed = self._failed = 0
        self._last_seconds = 0.0
        self._last_push_at: float | None = None
        self._last_failure = ""
        self._task = asyncio.create_task(self._run(), name=f"push to {path}")

    def stop(self) -> None:
        """Cancel the push under way, and push no more."""
        self._stopped = True
        self._task.cancel()
        if self._exporter is not None:
            # Ends the call under way.
            self._exporter.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def finish(self, seconds: float) -> None:
        """Push once more, within so many seconds, then stop."""
        self._finishing.set()
        _, pending = await asyncio.wait({self._task}, timeout=seconds)
        if pending:
            log.warning("the final push of metrics to %s failed: not done within %g s", self._path, seconds)
        self.stop()
        await asyncio.wait({self._task})

    def status(self) -> dict[str, object]:
        return {
            "period": self.period,
            "pushed": self._pushed,
            "failed": self._failed,
            "last_push_at": self._last_push_at,
            "last_took": round(self._last_seconds, 6),
            "last_failure": self._last_failure,
        }

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._finishing.is_set():
            due = max(due + self.period, loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._finishing.wait()
            await self._push_round()

    async def _push_round(self) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            pieces = [
                CompressedPiece(scope, piece.family, zlib.compress(piece.samples, 1))
                async for scope, piece in self._read_pieces(_READ_SECONDS)
                if piece.samples
            ]
            await loop.run_in_executor(self._thread, self._export, pieces)
        except Exception as error:
            self._failed += 1
            expected = isinstance(error, ExportFailed)
            self._last_failure = str(error) if expected else f"a bug in kumadp: {type(error).__name__}: {error}"
        else:
            self._pushed += 1
            self._last_push_at, self._last_failure = time.time(), ""
        self._last_seconds = loop.time() - since
        self._set_warning(self._path, self._last_failure)

    def _export(self, pieces: list[CompressedPiece]) -> None:
        from kumadp.otel.exporter import Exporter

        options = self._options()
        if self._exporter is None:
            self._exporter = Exporter(self._path, options)
        if self._stopped:
            # `stop` was called during the import.
            self._exporter.close()
            raise ExportFailed("the push was stopped")
        pieces.reverse()
        self._exporter.push(_drain(pieces), max(self.period, options.timeout), options.attribute_names)


def _drain(pieces: list[CompressedPiece]) -> Iterator[CompressedPiece]:
    """Pop the pieces from the end of the list, so that those already pushed are freed."""
    while pieces:
        yield pieces.pop()
