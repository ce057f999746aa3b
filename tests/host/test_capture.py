"""Output of libraries and of Python itself goes through the log, and everything is restored afterwards."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from typing import TYPE_CHECKING

from kumadp.host.log.capture import OutputCapture

if TYPE_CHECKING:
    from collections.abc import Iterator


class Records(logging.Handler):
    """Keeps the logger, level and text of each record."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int, str]] = []
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append((record.name, record.levelno, record.getMessage()))
        self.errors.append(record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else "")


@contextlib.contextmanager
def captured() -> Iterator[Records]:
    # Not a fixture: pytest replaces the streams between the setup and the call of a test.
    handler = Records()
    own = logging.getLogger("kumadp")
    own.addHandler(handler)
    capture = OutputCapture(handler)
    try:
        yield handler
    finally:
        capture.release()
        own.removeHandler(handler)


def test_prints_are_logged_line_by_line() -> None:
    with captured() as records:
        sys.stdout.write("one\ntw")
        assert records.seen == [("python.stdout", logging.INFO, "one")]
        sys.stdout.write("o\n\n")
        sys.stderr.write("bad\n")
        assert records.seen[1:] == [("python.stdout", logging.INFO, "two"), ("python.stderr", logging.WARNING, "bad")]


def test_a_line_without_end_is_logged_in_parts() -> None:
    with captured() as records:
        sys.stdout.write("x" * 9000)
        assert records.seen == [("python.stdout", logging.INFO, "x" * 8192)]
        assert not sys.stdout.isatty()
        assert (sys.stdout.encoding, sys.stdout.errors) == ("utf-8", "backslashreplace")


def test_warnings_and_records_of_libraries_are_logged() -> None:
    with captured() as records:
        warnings.showwarning(UserWarning("old"), UserWarning, "file.py", 7)
        logging.getLogger("a.library").warning("careful")
        logging.getLogger("a.library").info("not important")
        assert records.seen == [
            ("python.warnings", logging.WARNING, "file.py:7: UserWarning: old"),
            ("a.library", logging.WARNING, "careful"),
        ]


def test_exceptions_that_nothing_catches_are_logged_with_their_traceback() -> None:
    with captured() as records:
        sys.excepthook(ValueError, ValueError("x"), None)
        assert records.errors[-1] == "ValueError"

        def fail() -> None:
            raise KeyError("y")

        thread = threading.Thread(target=fail, name="worker")
        thread.start()
        thread.join()
        assert (records.errors[-1], records.seen[-1][2]) == ("KeyError", "a bug in kumadp: thread worker")

        class Broken:
            def __del__(self) -> None:
                raise TypeError("z")

        Broken()
        assert records.errors[-1] == "TypeError"
        assert records.seen[-1][2].endswith("__del__")


def test_everything_is_restored() -> None:
    def state() -> tuple[object, ...]:
        hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning)
        return (*hooks, sys.stdout, sys.stderr, logging.getLogger().level, tuple(logging.getLogger().handlers))

    previous = state()
    capture = OutputCapture(Records())
    assert state() != previous
    capture.release()
    assert state() == previous
