"""Durations in Go's notation: ``1m30s``, ``500ms``, ``1.5h`` (Go: time.ParseDuration)."""

from __future__ import annotations

import re

SECOND = 10**9
NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": SECOND,
    "m": 60 * SECOND,
    "h": 3600 * SECOND,
}
# Possessive quantifiers: with backtracking the time would grow exponentially with the text.
_PART = re.compile(r"([0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"[+-]?+(?:{_PART.pattern})++")
_BARE_NUMBER = re.compile(r"[0-9]++(?:\.[0-9]*+)?+")
_LONGEST_TEXT = 200
_LONGEST = 2**63 - 1  # nanoseconds: what Go's time.Duration holds


def parse_nanoseconds(text: str) -> int:
    """Return the nanoseconds of a Go duration, negative with a minus; raises ValueError with a hint."""
    if text in {"0", "+0", "-0"}:
        return 0
    if len(text) > _LONGEST_TEXT or not _DURATION.fullmatch(text):
        hint = f"; did you mean {text}s?" if len(text) < 20 and _BARE_NUMBER.fullmatch(text) else ""
        raise ValueError(f"is not a duration, write one like 1m30s or 500ms{hint}")
    total = sum(_count(number, NANOSECONDS[unit]) for number, unit in _PART.findall(text))
    if total > _LONGEST:
        raise ValueError("is longer than 292 years")
    return -total if text.startswith("-") else total


def in_seconds(nanoseconds: int) -> str:
    """Format a duration in seconds, as in protobuf's JSON: ``90s``, ``0.5s`` (google.protobuf.Duration)."""
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{decimal(abs(nanoseconds), SECOND)}s"


def decimal(count: int, unit: int) -> str:
    """Format ``count / unit`` without trailing zeros; ``unit`` is a power of ten."""
    whole, rest = divmod(count, unit)
    fraction = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0")
    return f"{whole}.{fraction}" if fraction else str(whole)


def _count(number: str, unit: int) -> int:
    """Return nanoseconds, with integer arithmetic: with floats 0.1s and 100ms may differ."""
    whole, _, fraction = number.partition(".")
    return int(whole or 0) * unit + (int(fraction or 0) * unit) // int(10 ** len(fraction))
