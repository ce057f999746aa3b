"""Logging that never blocks the event loop: records go through a bounded queue to a writer thread."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import re
import signal
import sys
import time
from pathlib import Path

from kumadp.errors import Problem, SettingsError
from kumadp.host.secrets import redact

QUEUE_LENGTH = 10_000
FLUSH_SECONDS = 2.0
_CHILD = "kumadp.child."
# Envoy's default format: [2026-11-23 17:36:16.566][123][info][main] [source/server/server.cc:1024] text
_ENVOY_LINE = re.compile(r"^\[[^\]]+\]\[\d+\]\[(?P<level>\w+)\]\[(?P<component>\w+)\] (?:\[[^\]]+\] )?(?P<text>.*)$")
_COREDNS_LINE = re.compile(r"^plugin/(?P<component>\w+): (?P<text>.*)$")
LEVELS: dict[str, int] = {
    "off": logging.CRITICAL + 10,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """``2026-11-23T17:36:26.662Z INFO envoy: text``; secrets masked."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as text; a traceback follows on its own lines."""
        name = record.name.removeprefix(_CHILD).removeprefix("kumadp.")
        text = f"{_time(record)} {record.levelname} {name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return redact(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message; a child's line is taken apart."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as one line of JSON."""
        message = redact(record.getMessage())
        fields: dict[str, str] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        if record.name.startswith(_CHILD):
            fields["child"] = record.name.removeprefix(_CHILD)
            if match := _ENVOY_LINE.match(message):
                fields.update(level=match["level"], component=match["component"])
                message = match["text"]
            elif match := _COREDNS_LINE.match(message):
                fields["component"] = match["component"]
                message = match["text"]
        fields["message"] = message
        if record.exc_info:
            fields["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


class _Queue(logging.handlers.QueueHandler):
    """Drops what a stuck output cannot take, and counts it."""

    dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


class _File(logging.handlers.RotatingFileHandler):
    """Rotates by size; what is older than ``max_age`` seconds is removed when it rotates."""

    max_age = 0.0

    def doRollover(self) -> None:  # noqa: N802 - the name is logging's
        super().doRollover()
        oldest = time.time() - self.max_age
        path = Path(self.baseFilename)
        for kept in path.parent.glob(path.name + ".*"):
            if self.max_age and kept.stat().st_mtime < oldest:
                kept.unlink(missing_ok=True)


class _Writer(logging.handlers.QueueListener):
    """Writes what is queued, in a thread that never holds the end of the process."""

    def finish(self, seconds: float) -> bool:
        """Write what is queued; False when that takes longer than ``seconds`` (and again as long for the last line)."""
        thread = self._thread
        assert thread is not None  # noqa: S101
        try:
            self.queue.put(self._sentinel, timeout=seconds)  # type: ignore[attr-defined]
        except queue.Full:
            return False
        thread.join(seconds)
        return not thread.is_alive()

    def catch_up(self, seconds: float) -> bool:
        """Return once all that was queued is written; False when that takes longer than ``seconds``."""
        records: queue.Queue[logging.LogRecord] = self.queue  # type: ignore[assignment]
        with records.all_tasks_done:
            return records.all_tasks_done.wait_for(lambda: not records.unfinished_tasks, seconds)


class LogOutput:
    """The writer behind all loggers; ``close`` flushes what is queued."""

    def __init__(self, handler: _Queue, writer: _Writer, target: logging.Handler) -> None:
        self._handler = handler
        self._writer = writer
        self._target = target

    @property
    def dropped(self) -> int:
        """Lines lost because the output was stuck."""
        return self._handler.dropped

    def status(self) -> dict[str, object]:
        """What became of lines; JSON types."""
        return {"dropped": self.dropped}

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Write what is queued; False when that takes longer than ``seconds``. Blocks."""
        return self._writer.catch_up(seconds)

    def close(self) -> None:
        """Write what is queued and stop the writer; an output that is stuck is waited for `FLUSH_SECONDS` only."""
        logging.getLogger("kumadp").removeHandler(self._handler)
        if self._writer.finish(FLUSH_SECONDS):
            self._target.close()


def setup_logging(
    *, level: str, fmt: str, output_path: str, max_files: int, max_size_mb: int, max_age_days: int
) -> LogOutput:
    """Start logging at ``level`` (off, error, warning, info, debug) as ``fmt`` (text, json).

    ``output_path`` empty means stderr; a file rotates at ``max_size_mb`` MB, keeps ``max_files`` old ones for
    ``max_age_days`` days (the names and defaults are kuma-dp's). Raises SettingsError where it cannot be written.
    """
    target: logging.Handler
    if output_path:
        target = _open_file(output_path, max_files, max_size_mb, max_age_days)
    else:
        target = logging.StreamHandler(sys.stderr)
    target.setFormatter(JsonFormatter() if fmt == "json" else TextFormatter())
    records: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_LENGTH)
    handler = _Queue(records)
    writer = _Writer(records, target)
    root = logging.getLogger("kumadp")
    root.setLevel(LEVELS[level])
    root.propagate = False
    root.addHandler(handler)
    logging.raiseExceptions = False
    # Signals are for the main thread: those that it holds back must not be taken by this one (`kumadp.host.handover`).
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    writer.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return LogOutput(handler, writer, target)


def _open_file(path: str, max_files: int, max_size_mb: int, max_age_days: int) -> _File:
    try:
        made = _File(path, maxBytes=max_size_mb * 1024 * 1024, backupCount=max_files, encoding="utf-8")
    except OSError as error:
        problem = Problem("--log-output-path", f"{path}: {error.strerror}", "name a file to write")
        raise SettingsError([problem]) from None
    made.max_age = max_age_days * 86400.0
    return made
