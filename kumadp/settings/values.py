"""Texts to values and back: Go durations, Go booleans, lists, pairs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kumadp.settings.option import Kind

_SPANS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
# Possessive: a digit that was taken is not given back, else the time grows exponentially with the text.
_PART = re.compile(r"([0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"[+-]?+(?:{_PART.pattern})++")
_BARE_NUMBER = re.compile(r"[0-9]++(?:\.[0-9]*+)?+")
_LONGEST_DURATION = 200
_LONGEST = 2**63 - 1  # nanoseconds: what Go's time.Duration holds
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


class BadValue(ValueError):
    """A text that is not a value of its kind; the message says what would be right."""


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as ``1m30s``, ``500ms``, ``1.5h`` or ``0`` (Go: time.ParseDuration)."""
    if text in {"0", "+0", "-0"}:
        return 0.0
    if len(text) > _LONGEST_DURATION or not _DURATION.fullmatch(text):
        hint = f"; did you mean {text}s?" if len(text) < 20 and _BARE_NUMBER.fullmatch(text) else ""
        raise BadValue(f"is not a duration, write one like 1m30s or 500ms{hint}")
    total = sum(_count(number, _NANOSECONDS[unit]) for number, unit in _PART.findall(text))
    if total > _LONGEST:
        raise BadValue("is longer than 292 years")
    return (-1 if text.startswith("-") else 1) * total / 10**9


def _count(number: str, unit: int) -> int:
    """Nanoseconds, in whole numbers: in floats 0.1s and 100ms need not be the same."""
    whole, _, fraction = number.partition(".")
    return int(whole or 0) * unit + (int(fraction or 0) * unit) // int(10 ** len(fraction))


def write_duration(seconds: float) -> str:
    """The shortest Go duration of ``seconds``, to the nanosecond: ``1m30s``, ``500ms``, ``1h0.5s``."""
    count = round(abs(seconds) * 10**9)
    sign = "-" if seconds < 0 and count else ""
    if count == 0:
        return "0s"
    if count < 10**9:
        unit = next(unit for unit in ("ms", "us", "ns") if count >= _NANOSECONDS[unit])
        return f"{sign}{_decimal(count, _NANOSECONDS[unit])}{unit}"
    minutes, rest = divmod(count, _NANOSECONDS["m"])
    parts = ((minutes // 60, "h"), (minutes % 60, "m"))
    whole = "".join(f"{number}{unit}" for number, unit in parts if number)
    return sign + whole + (f"{_decimal(rest, 10**9)}s" if rest else "")


def _decimal(count: int, unit: int) -> str:
    whole, rest = divmod(count, unit)
    fraction = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0")
    return f"{whole}.{fraction}" if fraction else str(whole)


def lasting(seconds: float) -> str:
    """A time span by its two largest units: ``2h 3m``, ``41s``, ``0s``."""
    left, parts = max(0, int(seconds)), []
    for size, unit in _SPANS:
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
        elif parts:
            break
    return " ".join(parts[:2]) or "0s"


def parse_boolean(text: str) -> bool:
    """A Go boolean (strconv.ParseBool): 1, t, T, TRUE, true, True and their opposites."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise BadValue("is not a boolean, write true or false")


def parse_integer(text: str) -> int:
    """A whole number in decimal."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise BadValue("is not a whole number")
    return int(text)


def split_addresses(text: str) -> tuple[str, ...]:
    """The parts of ``a,b`` in their order, each once; a part that is empty stays."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def parse_assignments(text: str) -> dict[str, str]:
    """``a=b``, or ``a=b,c=d`` where more than one ``=`` says so (pflag: StringToString, which kuma-dp uses)."""
    import csv

    try:
        parts = next(csv.reader([text], strict=True), []) if text.count("=") > 1 else [text.strip('"')]
    except csv.Error:
        raise BadValue("is not a list like name=value,name=value") from None
    found = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise BadValue("is not name=value")
        found[name] = value
    return found


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
