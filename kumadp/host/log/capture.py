"""Sends through our log what libraries and Python write: log records, warnings, errors, prints.

Written directly, each could block the event loop on a pipe that nobody reads, as often as a client triggers it.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger("kumadp.host")

# A longer line is logged in parts.
_MAX_LINE = 8192


class OutputCapture:
    """Directs all output to ``handler``, from now on until `release`."""

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler
        self._root = logging.getLogger()
        self._level = self._root.level
        self._hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning)
        self._streams = (sys.stdout, sys.stderr)
        self._root.setLevel(logging.WARNING)
        self._root.addHandler(handler)
        logging.getLogger("python").setLevel(logging.INFO)
        sys.excepthook, threading.excepthook, sys.unraisablehook = _on_error, _on_thread_error, _on_unraisable
        warnings.showwarning = _on_warning  # type: ignore[assignment]  # unused parameters have no names
        sys.stdout = _Stream("stdout", logging.INFO, sys.stdout)
        sys.stderr = _Stream("stderr", logging.WARNING, sys.stderr)

    def release(self) -> None:
        """Restore the previous hooks and streams."""
        sys.stdout, sys.stderr = self._streams
        sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = self._hooks
        self._root.removeHandler(self._handler)
        self._root.setLevel(self._level)


class _Stream(io.TextIOBase):
    """Logs what is written to it, line by line."""

    def __init__(self, name: str, level: int, original: Any) -> None:
        super().__init__()
        self._log = logging.getLogger(f"python.{name}")
        self._level = level
        self._original = original
        self._rest = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            if len(self._rest) > _MAX_LINE:
                lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            if line.strip():
                self._log.log(self._level, "%s", line[:_MAX_LINE])
        return len(text)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return int(self._original.fileno())

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"


def _on_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    log.critical("a bug in kumadp", exc_info=(kind, error, traceback))


def _on_thread_error(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and args.exc_type is not SystemExit:
        name = args.thread.name if args.thread is not None else "?"
        log.error("a bug in kumadp: thread %s", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback))


def _on_unraisable(args: sys.UnraisableHookArgs) -> None:
    where = getattr(args.object, "__qualname__", type(args.object).__name__)
    if args.exc_value is not None:
        info = (args.exc_type, args.exc_value, args.exc_traceback)
        log.error("%s in %s", args.err_msg or "Exception ignored", where, exc_info=info)


def _on_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_more: object) -> None:
    logging.getLogger("python.warnings").warning("%s:%s: %s: %s", filename, lineno, category.__name__, message)
