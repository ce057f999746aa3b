"""Conversion of option values from and to text: Go durations, Go booleans, lists, pairs."""

from __future__ import annotations

import re
from typing import Literal

from kumadp.durations import NANOSECONDS, SECOND, decimal, parse_nanoseconds

Kind = Literal["text", "integer", "boolean", "duration", "texts", "integers", "pairs"]

_SPANS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


class BadValue(ValueError):
    """A text that is not a value of its kind; the message describes a correct one."""


def parse_duration(text: str) -> float:
    """Return the seconds of a Go duration such as ``1m30s``, ``500ms``, ``1.5h`` or ``0`` (Go: time.ParseDuration).

    Raises BadValue.
    """
    try:
        return parse_nanoseconds(text) / SECOND
    except ValueError as error:
        raise BadValue(str(error)) from None


def write_duration(seconds: float) -> str:
    """Return the shortest Go duration of ``seconds``, to the nanosecond: ``1m30s``, ``500ms``, ``1h0.5s``."""
    count = round(abs(seconds) * 10**9)
    sign = "-" if seconds < 0 and count else ""
    if count == 0:
        return "0s"
    if count < 10**9:
        unit = next(unit for unit in ("ms", "us", "ns") if count >= NANOSECONDS[unit])
        return f"{sign}{decimal(count, NANOSECONDS[unit])}{unit}"
    minutes, rest = divmod(count, NANOSECONDS["m"])
    parts = ((minutes // 60, "h"), (minutes % 60, "m"))
    whole = "".join(f"{number}{unit}" for number, unit in parts if number)
    return sign + whole + (f"{decimal(rest, 10**9)}s" if rest else "")


def format_elapsed(seconds: float) -> str:
    """Return a time span in its two largest units: ``2h 3m``, ``41s``, ``0s``."""
    rest, parts = max(0, int(seconds)), []
    for size, unit in _SPANS:
        if rest >= size:
            parts.append(f"{rest // size}{unit}")
            rest %= size
        elif parts:
            break
    return " ".join(parts[:2]) or "0s"


def parse_boolean(text: str) -> bool:
    """Parse a Go boolean (strconv.ParseBool): 1, t, T, TRUE, true, True and their opposites; raises BadValue."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise BadValue("is not a boolean, write true or false")


def parse_integer(text: str) -> int:
    """Parse a whole number in decimal; raises BadValue."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise BadValue("is not a whole number")
    return int(text)


def split_addresses(text: str) -> tuple[str, ...]:
    """Return the parts of ``a,b`` in their order, without duplicates; an empty part stays."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def parse_assignments(text: str) -> dict[str, str]:
    """Parse ``a=b``, or ``a=b,c=d`` if there is more than one ``=`` (pflag: StringToString, used by kuma-dp).

    Raises BadValue.
    """
    import csv

    try:
        parts = next(csv.reader([text], strict=True), []) if text.count("=") > 1 else [text.strip('"')]
    except csv.Error:
        raise BadValue("is not a list like name=value,name=value") from None
    assignments = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise BadValue("is not name=value")
        assignments[name] = value
    return assignments


def _parse_pairs(text: str) -> dict[str, str]:
    pairs = {}
    for part in filter(None, text.split(",")):
        name, colon, value = part.partition(":")
        if not colon:
            raise BadValue("is not a list like name:value,name:value")
        pairs[name.strip()] = value
    return pairs


def read_value(kind: Kind, text: str) -> object:
    """Convert the text of a flag or variable to a value; raises BadValue."""
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
    """Convert ``value`` to text, as a user would write it on the command line."""
    if kind == "duration" and isinstance(value, int | float):
        return write_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ",".join(f"{name}:{text}" for name, text in value.items())
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
