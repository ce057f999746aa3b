"""Formats of log lines: text and JSON, and the parsing of children's lines."""

from __future__ import annotations

import json
import logging
import re
import time

from msgspec import Struct

from kumadp.host.log.secrets import redact

_CHILD = "kumadp.child."
# Envoy's default format: [2026-11-23 17:36:16.566][123][info][main] [source/server/server.cc:1024] text
_SPDLOG_LINE = re.compile(r"^\[[^\]]+\]\[\d+\]\[(?P<level>\w+)\]\[(?P<component>\w+)\] (?:\[[^\]]+\] )?(?P<text>.*)$")
_PLUGIN_LINE = re.compile(r"^plugin/(?P<component>\w+): (?P<text>.*)$")
_FORMATTER = logging.Formatter()
LEVELS: dict[str, int] = {
    "off": logging.CRITICAL + 10,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
# Envoy's names of levels.
_SPDLOG_LEVELS = {
    **{name: LEVELS[name] for name in ("error", "warning", "info", "debug")},
    "trace": logging.DEBUG,
    "critical": logging.CRITICAL,
}


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class LineOrigin(Struct, frozen=True):
    """Origin of a record: ``child`` is empty for our own lines; ``known``: the child's line has a known format."""

    child: str = ""
    component: str = ""
    known: bool = False


def read_line(record: logging.LogRecord) -> LineOrigin:
    """Return the origin of a record. Parses a child's line once, and sets level and text of the record from it."""
    parsed: LineOrigin | None = getattr(record, "line", None)
    if parsed is not None:
        return parsed
    line, text = LineOrigin(), record.getMessage()
    child = record.name.removeprefix(_CHILD) if record.name.startswith(_CHILD) else ""
    if child == "envoy":
        line, match = LineOrigin(child), _SPDLOG_LINE.match(text)
        if match is not None and (level := match["level"].lower()) in _SPDLOG_LEVELS:
            line = LineOrigin(child, match["component"], known=True)
            record.levelno, record.levelname = _SPDLOG_LEVELS[level], level.upper()
            record.msg, record.args = match["text"], ()
    elif child:
        # The log pump has parsed the level.
        line, match = LineOrigin(child, known=record.levelno > logging.INFO), _PLUGIN_LINE.match(text)
        if match is not None:
            line = LineOrigin(child, match["component"], known=True)
            record.msg, record.args = match["text"], ()
    record.line = line
    return line


def line_text(record: logging.LogRecord) -> str:
    """Return origin and text, a traceback on further lines: ``envoy@1/upstream: text``. Secrets are not masked."""
    line = read_line(record)
    name = record.name.removeprefix(_CHILD).removeprefix("kumadp.")
    if epoch := getattr(record, "epoch", 0):
        name += f"@{epoch}"
    if line.component:
        name += f"/{line.component}"
    text = f"{name}: {record.getMessage()}{_repeats(record)}"
    return text + ("\n" + _FORMATTER.formatException(record.exc_info) if record.exc_info else "")


def _repeats(record: logging.LogRecord) -> str:
    count, within = getattr(record, "repeated", 0), getattr(record, "within", 0.0)
    return f" ({count} more like this in {within:.0f} s)" if count else ""


class TextFormatter(logging.Formatter):
    """``2026-11-23T17:36:26.662Z WARNING envoy/upstream: text``; secrets masked. A later epoch is ``envoy@1``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one record as text, a traceback on further lines."""
        text = line_text(record)
        return redact(f"{_time(record)} {record.levelname} {text}")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message; for a child its name, Envoy's epoch, and its component.

    ``repeated`` counts lines like this one that were suppressed in the last ``within`` seconds.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one record as one line of JSON."""
        line = read_line(record)
        fields: dict[str, object] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        if line.child:
            fields["child"] = line.child
            if (epoch := getattr(record, "epoch", None)) is not None:
                fields["epoch"] = epoch
            if line.component:
                fields["component"] = line.component
        if repeated := getattr(record, "repeated", 0):
            fields.update(repeated=repeated, within=round(getattr(record, "within", 0.0)))
        fields["message"] = redact(record.getMessage())
        if record.exc_info:
            fields["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(fields, ensure_ascii=False)
