"""Lines of a log are read back as they were written, and chosen by level and component."""

from __future__ import annotations

import json
import logging

import pytest

from kumadp.cli.log_lines import LineFilter, LogLine, of_file, of_journal
from kumadp.errors import UsageError
from kumadp.host.log.journal import fields_of
from kumadp.host.log.line_formats import JsonFormatter, TextFormatter

ENVOY_LINE = "[2026-11-23 17:36:16.566][7][debug][upstream] [a.cc:1] gone"
RECORDS = [
    ("kumadp.relay", logging.WARNING, "the control plane: is unreachable", ("warning", "relay", "")),
    ("kumadp.child.envoy", logging.INFO, ENVOY_LINE, ("debug", "envoy", "upstream")),
    ("kumadp.child.coredns", logging.ERROR, "plugin/errors: 2 web.mesh. A", ("error", "coredns", "errors")),
    ("kumadp.child.envoy", logging.INFO, "10.0.0.1 GET /", ("info", "envoy", "")),
]  # fmt: skip
TEXTS = ["the control plane: is unreachable", "gone", "2 web.mesh. A", "10.0.0.1 GET /"]


def record(name: str, level: int, text: str) -> logging.LogRecord:
    made = logging.LogRecord(name, level, "", 0, text, (), None)
    made.created, made.msecs = 1764000000.25, 250.0
    made.epoch = 1
    return made


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_lines_are_read_as_they_were_written(form: str) -> None:
    lines = []
    for name, level, text, _ in RECORDS:
        made = record(name, level, text)
        if form == "journal":
            fields = {**fields_of(made), "__REALTIME_TIMESTAMP": "1764000000250000"}
            lines.append(of_journal(json.dumps(fields)))
        else:
            formatter = JsonFormatter() if form == "json" else TextFormatter()
            lines.append(of_file(formatter.format(made)))
    expected = [expected for *_, expected in RECORDS]
    assert [(line.level, line.source, line.component) for line in lines if line] == expected
    assert [line.text for line in lines if line] == TEXTS
    assert {line.time for line in lines if line} == {"2025-11-24T16:00:00.250Z"}


@pytest.mark.parametrize(
    "text", ["", "  File x, line 1", "{not json", '{"a": 1}', "Traceback (most recent call last):"]
)
def test_other_lines_are_kept_as_they_are(text: str) -> None:
    assert str(of_file(text)) == text


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "{}", '{"MESSAGE": "x"}', '{"MESSAGE": [1], "__REALTIME_TIMESTAMP": "1"}']
)
def test_other_entries_of_the_journal_are_left_out(text: str) -> None:
    assert of_journal(text) is None


def test_a_line_of_the_service_manager_is_shown() -> None:
    entry = {"MESSAGE": "Started kumadp", "__REALTIME_TIMESTAMP": "0", "PRIORITY": "6", "SYSLOG_IDENTIFIER": "systemd"}
    assert str(of_journal(json.dumps(entry))) == "1970-01-01T00:00:00.000Z INFO systemd: Started kumadp"


def line(level: str, source: str, component: str = "") -> LogLine:
    return LogLine("2026-11-30T00:00:00.000Z", level, source, component, "x")


LINES = [
    line("debug", "relay"),
    line("warning", "daemon"),
    line("info", "envoy", "upstream"),
    line("debug", "envoy", "http"),
    line("error", "coredns", "errors"),
]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ((), [0, 1, 2, 3, 4]),
        (("warning",), [1, 4]),
        (("warning", "envoy.upstream=debug"), [1, 2, 4]),
        (("envoy",), [2, 3]),
        (("envoy.http", "relay"), [0, 3]),
        (("error", "kumadp=debug"), [0, 1, 4]),
        (("error", "kumadp=debug", "relay=error"), [1, 4]),
        (("off", "coredns=error"), [4]),
        (("envoy", "info"), [1, 2, 3, 4]),
    ],
)
def test_the_filter(words: tuple[str, ...], shown: list[int]) -> None:
    chosen = LineFilter(words)
    assert [index for index, one in enumerate(LINES) if chosen.shows(one)] == shown


def test_lines_of_a_traceback_belong_to_the_line_before_them() -> None:
    chosen = LineFilter(["warning"])
    lines = [line("info", "relay"), of_file("  File x"), line("error", "relay"), of_file("  File y")]
    assert [chosen.shows(one) for one in lines] == [False, False, True, True]


def test_a_level_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="no level 'loud'"):
        LineFilter(["relay=loud"])
