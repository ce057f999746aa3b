"""Logging that never blocks the event loop: records go through a bounded queue to a writer thread."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.errors import Problem, SettingsError
from kumadp.host.log.line_formats import LEVELS, JsonFormatter, LineOrigin, TextFormatter, read_line
from kumadp.host.log.repeat_filter import RepeatFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.host.log.capture import OutputCapture

QUEUE_LENGTH = 10_000
QUEUE_BYTES = 16 << 20
"""Limit of text that waits to be written, counted before formatting: a child's line may have 64 KiB."""
FLUSH_SECONDS = 2.0
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


# Queued to have all counts of suppressed lines written now.
_FLUSH_REPEATS = logging.makeLogRecord({})


class _Queue(logging.handlers.QueueHandler):
    """Drops lines that a stuck output cannot take, and counts them."""

    dropped = 0
    # Bytes put and taken so far: each is written by one thread only.
    _put = 0
    taken = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        # Called with the lock of `logging.Handler` held.
        record.size = size = _size(record)
        try:
            if self._put + size - self.taken > QUEUE_BYTES:
                raise queue.Full
            self.queue.put_nowait(record)
            self._put += size
        except queue.Full:
            self.dropped += 1

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def count_lost(self, _record: logging.LogRecord) -> None:
        """Count a line that the output refused: the disk is full, or the reader has ended."""
        self.dropped += 1


def _size(record: logging.LogRecord) -> int:
    args = record.args if isinstance(record.args, tuple) else ()
    return len(str(record.msg)) + sum(len(part) for part in args if isinstance(part, str))


class _File(logging.handlers.RotatingFileHandler):
    """Rotates by size, and then removes files older than ``max_age`` seconds."""

    max_age = 0.0

    def doRollover(self) -> None:  # noqa: N802 - the name is logging's
        super().doRollover()
        oldest = time.time() - self.max_age
        path = Path(self.baseFilename)
        for rotated in path.parent.glob(path.name + ".*"):
            if self.max_age and rotated.stat().st_mtime < oldest:
                rotated.unlink(missing_ok=True)


class _Writer(logging.handlers.QueueListener):
    """Writes queued records, repeated ones with a count, in a thread that never delays the exit of the process."""

    def __init__(self, records: queue.Queue[logging.LogRecord], handler: _Queue, target: logging.Handler) -> None:
        super().__init__(records, target)
        self._handler = handler
        self._reported = 0
        self.repeats: RepeatFilter[logging.LogRecord] = RepeatFilter()
        self.clock: Callable[[], float] = time.monotonic

    def dequeue(self, block: bool) -> logging.LogRecord:
        """Return the next record; counts of suppressed lines are written when due, and before the end."""
        records: queue.Queue[logging.LogRecord] = self.queue  # type: ignore[assignment]
        while True:
            due = self.repeats.due()
            try:
                record = records.get(block, None if due is None else max(0.0, due - self.clock()))
            except queue.Empty:
                self._write_counts()
                continue
            if record is self._sentinel:  # type: ignore[attr-defined]
                self._write_counts(all_of_them=True)
            elif record is _FLUSH_REPEATS:
                self._write_counts(all_of_them=True)
                records.task_done()
                continue
            self._handler.taken += getattr(record, "size", 0)
            return record

    def handle(self, record: logging.LogRecord) -> None:
        """Write a record, or count it as repeated."""
        line = read_line(record)
        if not self._is_enabled(record.name, line, record.levelno):
            return
        self._report_lost()
        if line.child and not line.known and not record.exc_info:
            # An access log: every line matters.
            super().handle(record)
            return
        now = self.clock()
        self._write_counts()
        if self.repeats.admit(_kind(record, line), record.levelno, record, now):
            super().handle(record)

    def _is_enabled(self, name: str, line: LineOrigin, level: int) -> bool:
        """Return whether to write a line: Envoy and our loggers filter by themselves, libraries by our level."""
        minimum = logging.getLogger("kumadp").level
        if line.child:
            return minimum < LEVELS["off"] and (line.child == "envoy" or level >= minimum)
        return _is_own(name) or level >= minimum

    def _report_lost(self) -> None:
        """Log how many lines were lost, once the output takes lines again."""
        lost = self._handler.dropped - self._reported
        if not lost or self.queue.qsize() > QUEUE_LENGTH // 2:  # type: ignore[attr-defined]
            return
        dropped = self._handler.dropped
        text = f"{lost} lines were lost: what the log is written to was stuck or full"
        super().handle(logging.LogRecord("kumadp.log", logging.WARNING, "", 0, text, (), None))
        # If the output is still full, this line does not count as lost.
        self._reported += lost if self._handler.dropped == dropped else 0
        self._handler.dropped = dropped

    def _write_counts(self, *, all_of_them: bool = False) -> None:
        for repeated in self.repeats.summaries(self.clock(), all_of_them=all_of_them):
            repeated.last.repeated, repeated.last.within = repeated.count, repeated.seconds
            super().handle(repeated.last)

    def finish(self, seconds: float) -> bool:
        """Write all queued records; return False after ``seconds`` (and again as long for the last line)."""
        thread = self._thread
        assert thread is not None  # noqa: S101
        try:
            self.queue.put(self._sentinel, timeout=seconds)  # type: ignore[attr-defined]
        except queue.Full:
            return False
        thread.join(seconds)
        return not thread.is_alive()

    def catch_up(self, seconds: float) -> bool:
        """Write all queued records and counts of suppressed lines; return False after ``seconds``."""
        records: queue.Queue[logging.LogRecord] = self.queue  # type: ignore[assignment]
        with contextlib.suppress(queue.Full):
            records.put_nowait(_FLUSH_REPEATS)
        with records.all_tasks_done:
            return records.all_tasks_done.wait_for(lambda: not records.unfinished_tasks, seconds)


def _is_own(name: str) -> bool:
    return name == "kumadp" or name.startswith("kumadp.")


def _kind(record: logging.LogRecord, line: LineOrigin) -> tuple[object, ...]:
    """Return a key that is equal for lines that repeat each other.

    Numbers are ignored in lines of children, where ports and counters change, and of libraries, which quote clients; in
    our own lines a number matters. A traceback has the key of its exception type and the place that raised it.
    """
    name, level = record.name, record.levelno
    if record.exc_info and record.exc_info[0] is not None:
        error, place = record.exc_info[0], record.exc_info[2]
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        raised = (place.tb_frame.f_code.co_filename, place.tb_lineno) if place is not None else None
        return (name, level, error, raised)
    if line.child:
        return (name, level, _NUMBER.sub("#", record.getMessage()))
    if _is_own(name):
        return (name, level, record.getMessage())
    text = record.getMessage() if record.msg == "%s" else str(record.msg)
    return (name, level, _NUMBER.sub("#", text.partition("\n")[0][:200]))


class LogOutput:
    """The output of all loggers; ``close`` flushes it."""

    def __init__(self, handler: _Queue, writer: _Writer, target: logging.Handler, form: str, output: str) -> None:
        self._form = form
        self._output = output
        self._handler = handler
        self._writer = writer
        self._target = target
        self._captured: OutputCapture | None = None

    @property
    def dropped(self) -> int:
        """Lines lost because the output was stuck."""
        return self._handler.dropped

    def status(self) -> dict[str, object]:
        """Return counts of lines, format and output: ``journal``, ``stderr`` or a file; JSON types."""
        counts = {"dropped": self.dropped, "folded": self._writer.repeats.suppressed}
        return {**counts, "format": self._form, "output": self._output}

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Write all queued records and counts of suppressed lines; return False after ``seconds``. Blocks."""
        return self._writer.catch_up(seconds)

    def capture(self) -> None:
        """Also write what libraries log, warn and print, until `close`."""
        from kumadp.host.log.capture import OutputCapture

        self._captured = OutputCapture(self._handler)

    def close(self) -> None:
        """Write all queued records and stop the writer; a stuck output is given up after `FLUSH_SECONDS`."""
        if self._captured is not None:
            self._captured.release()
        logging.getLogger("kumadp").removeHandler(self._handler)
        if self._writer.finish(FLUSH_SECONDS):
            self._target.close()


def setup_logging(
    *, level: str, fmt: str, output_path: str, max_files: int, max_size_mb: int, max_age_days: int
) -> LogOutput:
    """Start logging at ``level`` (off, error, warning, info, debug) in the format ``fmt``: text, json or auto.

    auto is text on a terminal, entries with fields for systemd's journal, and json elsewhere.

    ``output_path`` empty means stderr; a file rotates at ``max_size_mb`` MB, and ``max_files`` old ones are kept for
    ``max_age_days`` days (the names and defaults are kuma-dp's). Raises SettingsError if it cannot be written.
    """
    target: logging.Handler
    if output_path:
        target = _open_file(output_path, max_files, max_size_mb, max_age_days)
    else:
        target = logging.StreamHandler(sys.stderr)
    if fmt == "auto" and not output_path and is_journal(2, os.environ):
        from kumadp.host.log.journal import JournalHandler

        target, fmt = JournalHandler(), "journal"
    elif fmt == "auto":
        fmt = "text" if not output_path and sys.stderr.isatty() else "json"
    target.setFormatter(JsonFormatter() if fmt == "json" else TextFormatter())
    records: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_LENGTH)
    handler = _Queue(records)
    target.handleError = handler.count_lost  # type: ignore[assignment,method-assign]
    writer = _Writer(records, handler, target)
    root = logging.getLogger("kumadp")
    root.setLevel(LEVELS[level])
    root.propagate = False
    # Lines of children have levels of their own, which are parsed in the writer's thread.
    logging.getLogger("kumadp.child").setLevel(logging.DEBUG)
    root.addHandler(handler)
    logging.raiseExceptions = False
    # Signals are for the main thread: those that it blocks (`kumadp.host.reexec.handover`) must stay pending.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    writer.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    output = str(Path(output_path).absolute()) if output_path else "journal" if fmt == "journal" else "stderr"
    return LogOutput(handler, writer, target, fmt, output)


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Return whether systemd's journal reads a descriptor: JOURNAL_STREAM is its device and inode (systemd.exec(5))."""
    stream = environ.get("JOURNAL_STREAM", "")
    if not stream:
        return False
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


def _open_file(path: str, max_files: int, max_size_mb: int, max_age_days: int) -> _File:
    where = Path(path)
    try:
        if where.is_fifo():  # opening it would block without a reader
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        # Since Python 3.11.9, 3.12.3 and 3.13 logging reads the position of a file that rotates: a FIFO has none.
        rotates = where.is_file() or not where.exists()
        size = max_size_mb * 1024 * 1024 if rotates else 0
        file = _File(path, maxBytes=size, backupCount=max_files, encoding="utf-8")
    except OSError as error:
        problem = Problem("--log-output-path", f"{path}: {error.strerror}", "name a file to write")
        raise SettingsError([problem]) from None
    file.max_age = max_age_days * 86400.0
    return file
