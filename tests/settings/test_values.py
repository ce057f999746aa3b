"""Go's durations, booleans and numbers, and pflag's assignments, as kuma-dp reads them."""

from __future__ import annotations

import random

import pytest

from kumadp.settings.values import (
    BadValue,
    parse_assignments,
    parse_boolean,
    parse_duration,
    parse_integer,
    read_value,
    write_duration,
    write_value,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("-0", 0.0),
        ("0s", 0.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("1h2m3s4ms5us6ns", 3723.004005006),
        ("5µs", 5e-6),  # U+00B5, micro sign
        ("5μs", 5e-6),  # U+03BC, Greek mu: Go takes both
        ("+5s", 5.0),
        ("-1m5s", -65.0),
        ("1s1s", 2.0),
        ("0.1s", 0.1),
    ],
)
def test_go_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "1",
        "s",
        ".s",
        "1 s",
        " 1s",
        "1s ",
        "--1s",
        "+-1s",
        "1d",
        "1S",
        "1m30",
        "1.2.3s",
        "1e3s",
        "٣s",
        "2562048h",
    ],
)
def test_texts_that_go_rejects_are_rejected(text: str) -> None:
    with pytest.raises(BadValue):
        parse_duration(text)


def test_a_number_without_a_unit_has_a_hint() -> None:
    with pytest.raises(BadValue, match=r"did you mean 30s\?"):
        parse_duration("30")


def test_durations_survive_being_written() -> None:
    numbers = random.Random(20)
    table = [0, 1, 999, 10**3, 10**6, 10**9 - 1, 10**9, 60 * 10**9, 90 * 10**9 + 1, 3600 * 10**9, 2**53]
    table += [numbers.randrange(10 ** numbers.randrange(1, 16)) for _ in range(500)]
    for count in table:
        seconds = count / 10**9
        text = write_duration(seconds)
        assert parse_duration(text) == seconds, text
        assert write_duration(parse_duration(text)) == text
        assert parse_duration(f"-{text}") == -seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (90, "1m30s"),
        (60, "1m"),
        (0.5, "500ms"),
        (3600.25, "1h0.25s"),
        (1e-6, "1us"),
        (-2, "-2s"),
        (1.5, "1.5s"),
    ],
)
def test_durations_are_written_short(seconds: float, text: str) -> None:
    assert write_duration(seconds) == text


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_go_true(text: str) -> None:
    assert parse_boolean(text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_go_false(text: str) -> None:
    assert parse_boolean(text) is False


@pytest.mark.parametrize("text", ["", "yes", "on", "tRUE", "2", " true"])
def test_not_a_boolean(text: str) -> None:
    with pytest.raises(BadValue):
        parse_boolean(text)


@pytest.mark.parametrize("text", ["", "1.5", "1_000", "0x10", "٣", " 1", "1 ", "1e3", "9" * 30])
def test_not_a_whole_number(text: str) -> None:
    with pytest.raises(BadValue):
        parse_integer(text)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a=b", {"a": "b"}),
        ("a.b=c", {"a.b": "c"}),
        ("a=", {"a": ""}),
        ("a=1,b", {"a": "1,b"}),  # one "=": the rest is the value
        ("a=1,b=2", {"a": "1", "b": "2"}),
        ("a=b=c", {"a": "b=c"}),
        ('"a=1,2",b=3', {"a": "1,2", "b": "3"}),
    ],
)
def test_assignments_are_pflag_s(text: str, pairs: dict[str, str]) -> None:
    assert parse_assignments(text) == pairs


@pytest.mark.parametrize("text", ["", "a", "=b", "a=1,b=2,c", '"a=1,b=2'])
def test_not_an_assignment(text: str) -> None:
    with pytest.raises(BadValue):
        parse_assignments(text)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("pairs", "a:b,c:d", {"a": "b", "c": "d"}),
        ("texts", "a,b", ("a", "b")),
        ("integers", "1,2", (1, 2)),
        ("boolean", "true", True),
        ("integer", "7", 7),
        ("duration", "1m30s", 90.0),
        ("text", "a,b", "a,b"),
    ],
)
def test_values_survive_being_written(kind: str, text: str, value: object) -> None:
    assert read_value(kind, text) == value  # type: ignore[arg-type]
    assert write_value(kind, value) == text  # type: ignore[arg-type]
