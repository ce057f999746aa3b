"""UTF-8 names reach only scrapers that negotiated them; others get them escaped, as prometheus/common does."""

from __future__ import annotations

import pytest

from kumadp.exposition.names import ALLOW, escaped, escaped_samples
from kumadp.exposition.reader import Reader
from kumadp.metrics.formats import Converter, Format, accept_for_sources, escaping_of
from tests.metrics.test_server import ENVOY, at
from tests.support.expositions import Exposition, check, collecting, exposed

OPEN = "application/openmetrics-text;version=1.0.0"
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
TEXTS = f"{OPEN};q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5"
NATIVE = f"{PROTOBUF},{TEXTS},*/*;q=0.1"


@pytest.mark.parametrize(
    ("name", "scheme", "expected"),
    [
        ("my.metric", "underscores", "my_metric"),
        ("my.metric", "dots", "my_dot_metric"),
        ("my_.metric", "dots", "my___dot_metric"),
        ("my.metric", "values", "U__my_2e_metric"),
        ("my_.metric", "values", "U__my___2e_metric"),
        ("9a", "underscores", "_a"),
        ("9a", "values", "U___39_a"),
        ("größe/s", "underscores", "gr__e_s"),
        ("größe/s", "values", "U__gr_f6__df_e_2f_s"),
        ("grö/s", "dots", "gr____s"),
        ("plain_name", "dots", "plain_name"),
        ("plain:name", "values", "plain:name"),
    ],
)
def test_a_name_is_escaped_as_kuma_dp_does(name: str, scheme: str, expected: str) -> None:
    assert escaped(name, scheme).decode() == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"a.b"} 1\n', "a_b 1\n"),
        ('{"a.b",x="1"} 1 1700\n', 'a_b{x="1"} 1 1700\n'),
        ('{x="1", "a.b" , "l.m"="2",} 1\n', 'a_b{x="1",l_m="2"} 1\n'),
        ('a{"l.m"="2"} 1\n', 'a{l_m="2"} 1\n'),
        ('a{x="\\"l.m\\"=,"} 1\n', 'a{x="\\"l.m\\"=,"} 1\n'),
        ('a{ x="{\\"" } 1\n', 'a{x="{\\""} 1\n'),
        ('{"plain",x="a,\\"b"} 1\n', 'plain{x="a,\\"b"} 1\n'),
        ('a{"l.m"="2",l_m="3"} 1\n', ""),
        ('{"a\\"b"} 1\n', "a_b 1\n"),
        ("a 1\n", "a 1\n"),
        ('a_total 1 # {"t.u"="x"} 1\n', "a_total 1\n"),
        ('a{x=" # {"} 1 2 # {t="1", "t.u"="x"} 1 2\n', 'a{x=" # {"} 1 2\n'),
        ('{"a.b"} 1 # {t="x", u="{\\"y\\","} 1\n', 'a_b 1 # {t="x", u="{\\"y\\","} 1\n'),
    ],
)
def test_a_line_is_escaped(line: str, expected: str) -> None:
    assert escaped_samples(line.encode(), "underscores").decode() == expected
    assert escaped_samples(line.encode(), ALLOW).decode() == line


def test_a_quoted_family_is_one_family() -> None:
    text = b"""# TYPE "h.x" histogram
{"h.x_bucket",le="1"} 1
{"h.x_bucket",le="+Inf"} 2
{"h.x_sum"} 1.5
{"h.x_count"} 2
"""
    pieces = list(Reader(checks=True).feed(text))
    assert {(piece.family.name, piece.family.kind) for piece in pieces} == {(b'"h.x"', b"histogram")}
    (first,) = (Converter(Format.TEXT, Format.TEXT, "underscores").convert(piece) for piece in pieces)
    assert first.family.header() + first.samples == (
        b'# TYPE h_x histogram\nh_x_bucket{le="1"} 1\nh_x_bucket{le="+Inf"} 2\nh_x_sum 1.5\nh_x_count 2\n'
    )


@pytest.mark.parametrize(
    ("accept", "asked"),
    [
        (NATIVE, TEXTS),
        ("text/plain", "text/plain"),
        ("", "text/plain;version=0.0.4"),
        ("*/*", "text/plain;version=0.0.4"),
        (PROTOBUF, "text/plain;version=0.0.4"),
        (f"{PROTOBUF},text/plain;q=0", "text/plain;version=0.0.4"),
        ("text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,image/png", None),
        ("application/openmetrics-text;version=9.0.0", "text/plain;version=0.0.4"),
    ],
)
def test_sources_are_asked_for_what_is_merged(accept: str, asked: str | None) -> None:
    assert accept_for_sources(accept) == (asked or accept.removesuffix(",image/png"))


@pytest.mark.parametrize(
    ("accept", "form", "escaping"),
    [
        (f"{OPEN};escaping=allow-utf-8", Format.OPENMETRICS_1, "allow-utf-8"),
        (f"{PROTOBUF};escaping=allow-utf-8,text/plain;version=0.0.4", Format.TEXT, ""),
        ("text/plain;version=0.0.4;q=0.1,text/plain;version=1.0.0;escaping=values;q=0.5", Format.TEXT, "values"),
        ("text/plain;escaping=sideways", Format.TEXT, ""),
        ("", Format.TEXT, ""),
    ],
)
def test_which_escaping_was_negotiated(accept: str, form: Format, escaping: str) -> None:
    assert escaping_of(accept, form) == escaping


UTF8 = """# HELP "app.requests" Requests.
# TYPE "app.requests" counter
{"app.requests","url.path"="/a"} 3
# TYPE app_plain gauge
app_plain 1
"""


@pytest.mark.parametrize("target", ["/", "/meshmetric"])
@pytest.mark.parametrize(
    ("accept", "series"),
    [
        (None, 'app_requests{url_path="/a"'),
        (NATIVE, 'app_requests{url_path="/a"'),
        ("text/plain;version=0.0.4;escaping=values", 'U__app_2e_requests{U__url_2e_path="/a"'),
        ("text/plain;escaping=dots", 'app_dot_requests{url_dot_path="/a"'),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", '{"app.requests","url.path"="/a"'),
    ],
)
async def test_a_quoted_name_reaches_those_who_negotiated_it(accept: str | None, series: str, target: str) -> None:
    app, envoy = Exposition(UTF8), Exposition(ENVOY)
    async with exposed(app, envoy), collecting(at(app, envoy=envoy)) as collector:
        got = await collector.scrape(target, {"Accept": accept} if accept else None)
    # Applications of the Mesh are sources by policy too, as long as no policy has come.
    assert series in got.text
    assert "app_plain" in got.text
    if "allow-utf-8" not in (accept or ""):
        assert not check(got.text)
        assert '{"' not in got.text


async def test_protobuf_is_asked_of_no_source() -> None:
    app, envoy = Exposition(UTF8), Exposition(ENVOY)
    async with exposed(app, envoy), collecting(at(app, envoy=envoy)) as collector:
        for target in ("/", "/meshmetric"):
            got = await collector.scrape(target, {"Accept": NATIVE})
            assert got.up("envoy")
    assert len(envoy.seen) == 2
    for request in (*envoy.seen, *app.seen):
        assert "protobuf" not in request.headers["Accept"]
        assert "*/*" not in request.headers["Accept"]
