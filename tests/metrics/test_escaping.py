"""UTF-8 names reach only scrapers that negotiated them; other scrapers receive them escaped."""

from __future__ import annotations

import pytest

from kumadp.exposition.reader import ExpositionReader
from kumadp.metrics.formats import Format, FormatConverter, accept_for_sources, escaping_of
from tests.metrics.test_server import ENVOY, at
from tests.support.expositions import Exposition, check, collecting, exposed

OPEN = "application/openmetrics-text;version=1.0.0"
PROTOBUF = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
TEXTS = f"{OPEN};q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5"
NATIVE = f"{PROTOBUF},{TEXTS},*/*;q=0.1"


def test_a_quoted_family_is_a_single_family() -> None:
    text = b"""# TYPE "h.x" histogram
{"h.x_bucket",le="1"} 1
{"h.x_bucket",le="+Inf"} 2
{"h.x_sum"} 1.5
{"h.x_count"} 2
"""
    pieces = list(ExpositionReader(checks=True).feed(text))
    assert {(piece.family.name, piece.family.kind) for piece in pieces} == {(b'"h.x"', b"histogram")}
    (first,) = (FormatConverter(Format.TEXT, Format.TEXT, "underscores").convert(piece) for piece in pieces)
    assert first.family.header() + first.samples == (
        b'# TYPE h_x histogram\nh_x_bucket{le="1"} 1\nh_x_bucket{le="+Inf"} 2\nh_x_sum 1.5\nh_x_count 2\n'
    )


@pytest.mark.parametrize(
    ("accept", "sent"),
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
def test_sources_receive_the_formats_that_can_be_merged(accept: str, sent: str | None) -> None:
    assert accept_for_sources(accept) == (sent or accept.removesuffix(",image/png"))


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
def test_the_negotiated_escaping(accept: str, form: Format, escaping: str) -> None:
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
async def test_a_quoted_name_reaches_scrapers_that_negotiated_it(accept: str | None, series: str, target: str) -> None:
    app, envoy = Exposition(UTF8), Exposition(ENVOY)
    async with exposed(app, envoy), collecting(at(app, envoy=envoy)) as collector:
        scrape = await collector.scrape(target, {"Accept": accept} if accept else None)
    # Applications of the Mesh are sources by policy too, until a policy arrives.
    assert series in scrape.text
    assert "app_plain" in scrape.text
    if "allow-utf-8" not in (accept or ""):
        assert not check(scrape.text)
        assert '{"' not in scrape.text


async def test_protobuf_is_requested_from_no_source() -> None:
    app, envoy = Exposition(UTF8), Exposition(ENVOY)
    async with exposed(app, envoy), collecting(at(app, envoy=envoy)) as collector:
        for target in ("/", "/meshmetric"):
            scrape = await collector.scrape(target, {"Accept": NATIVE})
            assert scrape.up("envoy")
    assert len(envoy.seen) == 2
    for request in (*envoy.seen, *app.seen):
        assert "protobuf" not in request.headers["Accept"]
        assert "*/*" not in request.headers["Accept"]
