"""Texts to values and back: Go durations, Go booleans, lists, pairs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kumadp.settings.option import Kind

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


class BadValue(ValueError):
    """A text that is not a value of its kind; the message says what would be right."""


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as ``1m30s``, ``500ms``, ``1.5h`` or ``0`` (Go: time.ParseDuration)."""
    if text in {"0", "+0", "-0"}:
        return 0.0
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text.lstrip("+-")
    matched = _PART.findall(rest)
    if not matched or "".join(number + unit for number, unit in matched) != rest:
        hint = f"; did you mean {text}s?" if re.fullmatch(r"\d+\.?\d*", text) else ""
        raise BadValue(f"is not a duration, write one like 1m30s or 500ms{hint}")
    return sign * sum(float(number) * _UNITS[unit] for number, unit in matched)


def write_duration(seconds: float) -> str:
    """The shortest Go duration of ``seconds``."""
    if seconds == 0:
        return "0s"
    if seconds % 1:
        return f"{seconds * 1000:g}ms"
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if n)


def parse_boolean(text: str) -> bool:
    """A Go boolean (strconv.ParseBool): 1, t, T, TRUE, true, True and their opposites."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise BadValue("is not a boolean, write true or false")


def parse_integer(text: str) -> int:
    """A whole number in decimal."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip()):
        raise BadValue("is not a whole number")
    return int(text)


def _parse_pairs(text: str) -> dict[str, str]:
    found = {}
    for part in filter(None, text.split(",")):
        name, colon, value = part.partition(":")
        if not colon:
            raise BadValue("is not a list like name:value,name:value")
        found[name.strip()] = value
    return found


def read_value(kind: Kind, text: str) -> object:
    """The value that a flag or variable's text stands for; raises BadValue."""
    match kind:
        case "integer":
            return parse_integer(text)
        case "boolean":
            return parse_boolean(text)
        case "duration":
            return parse_duration(text)
        case "texts":
            return tuple(part for part in text.split(",") if part)
        case "integers":
            return tuple(parse_integer(part) for part in text.split(",") if part)
        case "pairs":
            return _parse_pairs(text)
        case "text":
            return text


def write_value(kind: Kind, value: object) -> str:
    """``value`` as a user would write it on the command line."""
    if kind == "duration" and isinstance(value, int | float):
        return write_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ",".join(f"{name}:{text}" for name, text in value.items())
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
