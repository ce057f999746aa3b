"""Durations in Go's notation: parsing with Go's limits, formatting for protobuf."""

from __future__ import annotations

import pytest

from kumadp.durations import decimal, in_seconds, parse_nanoseconds


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("-0", 0),
        ("1s", 10**9),
        ("1m30s", 90 * 10**9),
        ("1.5h", 5400 * 10**9),
        (".5s", 5 * 10**8),
        ("1.s", 10**9),
        ("-2ms", -2 * 10**6),
        ("+2ms", 2 * 10**6),
        ("1µs", 10**3),
        ("1μs", 10**3),
        ("0.1s", 100 * 10**6),
        ("0.3ns", 0),
        ("9223372036854775807ns", 2**63 - 1),
    ],
)
def test_durations_are_parsed_as_go_does(text: str, nanoseconds: int) -> None:
    assert parse_nanoseconds(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not a duration"),
        ("s", "is not a duration"),
        ("1 s", "is not a duration"),
        ("1d", "is not a duration"),
        ("1s\n", "is not a duration"),
        ("٣s", "is not a duration"),
        ("10", "did you mean 10s?"),
        ("9223372036854775808ns", "longer than 292 years"),
        ("1s" * 101, "is not a duration"),
    ],
)
def test_other_texts_are_rejected_with_a_hint(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("?", r"\?")):
        parse_nanoseconds(text)


@pytest.mark.parametrize(
    ("nanoseconds", "text"), [(0, "0s"), (90 * 10**9, "90s"), (5 * 10**8, "0.5s"), (-1, "-0.000000001s")]
)
def test_seconds_have_no_trailing_zeros(nanoseconds: int, text: str) -> None:
    assert in_seconds(nanoseconds) == text


def test_a_decimal_is_exact() -> None:
    assert decimal(1234, 1000) == "1.234"
    assert decimal(2**63 - 1, 10**9) == "9223372036.854775807"
