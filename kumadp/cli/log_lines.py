"""Lines of a log, read back from a file (text or JSON) or from systemd's journal, and which of them to show. Pure."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from kumadp.decoding import Undecodable, decode_json
from kumadp.errors import UsageError
from kumadp.host.log.line_formats import LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterable

_TEXT = re.compile(r"(?P<time>\d{4}-\S+Z) (?P<level>[A-Z]+) (?P<name>[^\s:]+): ?(?P<text>.*)", re.DOTALL)
_NAME = re.compile(r"(?P<child>[\w-]+)(?:@\d+)?(?:/(?P<component>[\w-]+))?")
_CHILDREN = ("envoy", "coredns")
# Of lower numbers first, as Python's logging has them; Envoy's two are those of line_formats.
_RANK = {**LEVELS, "trace": LEVELS["debug"], "critical": LEVELS["error"], "warn": LEVELS["warning"]}
# syslog(3), as the journal has it.
_PRIORITIES = {0: "error", 1: "error", 2: "error", 3: "error", 4: "warning", 5: "info", 6: "info", 7: "debug"}


class LogLine(Struct, frozen=True):
    """One line: ``source`` is ``envoy``, ``coredns``, or a part of kumadp such as ``relay``; a child's component."""

    time: str
    level: str
    source: str
    component: str
    text: str

    def __str__(self) -> str:
        name = f"{self.source}/{self.component}" if self.component else self.source
        return f"{self.time} {self.level.upper()} {name}: {self.text}" if self.time else self.text


def of_file(line: str) -> LogLine:
    """Read a line of a file, JSON or text; one that is neither (of a traceback) has neither time nor level."""
    if line.startswith("{"):
        try:
            entry = decode_json(line.encode())
        except Undecodable:
            return LogLine("", "", "", "", line)
        if isinstance(entry, dict) and isinstance(entry.get("message"), str):
            return _of_json(entry)
    found = _TEXT.fullmatch(line)
    name = _NAME.fullmatch(found["name"].removeprefix("kumadp.")) if found else None
    if found is None or name is None:
        return LogLine("", "", "", "", line)
    return LogLine(found["time"], found["level"].lower(), name["child"], name["component"] or "", found["text"])


def _of_json(entry: dict[str, Any]) -> LogLine:
    source = str(entry.get("child") or str(entry.get("logger", "")).removeprefix("kumadp."))
    text = entry["message"] + (f"\n{entry['traceback']}" if "traceback" in entry else "")
    repeated = f" ({entry['repeated']} more like this)" if entry.get("repeated") else ""
    level = str(entry.get("level", ""))
    return LogLine(str(entry.get("time", "")), level, source, str(entry.get("component", "")), text + repeated)


def of_journal(line: str) -> LogLine | None:
    """Read an entry of ``journalctl --output=json``; None if it is none, or of another program of the unit."""
    try:
        entry = decode_json(line.encode())
    except Undecodable:
        return None
    message = entry.get("MESSAGE") if isinstance(entry, dict) else None
    if not isinstance(message, str):
        return None
    try:
        seconds, rest = divmod(int(entry["__REALTIME_TIMESTAMP"]), 1_000_000)
        level = _PRIORITIES.get(int(entry.get("PRIORITY", 6)), "info")
    except (KeyError, ValueError, TypeError):
        return None
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1000:03d}Z"
    logger = str(entry.get("KUMADP_LOGGER", ""))
    if not logger:
        return LogLine(moment, level, str(entry.get("SYSLOG_IDENTIFIER", "")), "", message)
    child, component = str(entry.get("KUMADP_CHILD", "")), str(entry.get("KUMADP_COMPONENT", ""))
    return LogLine(moment, level, child or logger.removeprefix("kumadp."), component, message.partition(": ")[2])


class LineFilter:
    """Which lines to show: those of at least a level, which may differ by component."""

    def __init__(self, words: Iterable[str]) -> None:
        """Read words such as ``warning``, ``envoy.upstream=debug`` and ``relay``; raises UsageError.

        A component without a level is shown as a whole, and then nothing else is, unless a level alone is given too.
        """
        self._levels: dict[str, int] = {}
        base, only = "", False
        for word in words:
            name, equals, level = word.partition("=")
            if not equals and name in _RANK:
                base = name
                continue
            if equals and level not in _RANK:
                raise UsageError(f"{word!r}: no level {level!r}", f"one of {', '.join(LEVELS)}")
            only = only or not equals
            self._levels[name] = _RANK[level or "debug"]
        self._base = _RANK[base] if base else (LEVELS["off"] if only else LEVELS["debug"])
        self._last = True

    def shows(self, line: LogLine) -> bool:
        """Return whether to show a line; one without a level belongs to the one before it."""
        if line.level:
            least = self._levels.get(f"{line.source}.{line.component}", self._levels.get(line.source))
            if least is None and line.source not in _CHILDREN:
                least = self._levels.get("kumadp")
            self._last = _RANK.get(line.level, LEVELS["info"]) >= (self._base if least is None else least)
        return self._last
