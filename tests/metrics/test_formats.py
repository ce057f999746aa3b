"""Formats of sources, and of responses."""

from __future__ import annotations

import pytest

from kumadp.metrics.formats import Format, choose, format_of

ONE = "application/openmetrics-text;version=1.0.0"


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", Format.OPENMETRICS_1),
        ("application/openmetrics-text; version=0.0.1", Format.OPENMETRICS_0),
        ("application/openmetrics-text", Format.OPENMETRICS_0),
        ("application/openmetrics-text; version=2.0.0", Format.UNKNOWN),
        ("Text/Plain; version=0.0.4", Format.TEXT),
        ("text/plain; charset=UTF-8", Format.TEXT),
        ("text/html", Format.UNKNOWN),
        ("", Format.UNKNOWN),
        ("\udcff; version=\udcff", Format.UNKNOWN),
        ("application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited", None),
    ],
)
def test_the_format_of_a_source(content_type: str, form: Format | None) -> None:
    assert format_of(content_type) is form


@pytest.mark.parametrize(
    ("accept", "named", "form"),
    [
        ("", (Format.TEXT, Format.OPENMETRICS_1), Format.OPENMETRICS_1),
        ("", (Format.TEXT, Format.OPENMETRICS_0), Format.OPENMETRICS_0),
        ("", (Format.TEXT, Format.UNKNOWN), Format.TEXT),
        ("", (), Format.TEXT),
        (ONE, (Format.TEXT,), Format.TEXT),
        (ONE, (Format.UNKNOWN,), Format.OPENMETRICS_1),
        ("text/plain;q=0.5," + ONE, (), Format.OPENMETRICS_1),
        ("text/plain," + ONE + ";q=0.5", (), Format.TEXT),
        (ONE + ";q=0", (Format.OPENMETRICS_1,), Format.TEXT),
        (ONE + ";q=much", (Format.OPENMETRICS_1,), Format.TEXT),
        (ONE + ";q*=utf-8''1", (Format.OPENMETRICS_1,), Format.TEXT),
        ("*/*", (Format.OPENMETRICS_1,), Format.TEXT),
        ("image/png", (), Format.TEXT),
    ],
)
def test_the_format_of_a_response(accept: str, named: tuple[Format, ...], form: Format) -> None:
    assert choose(accept, named) is form
