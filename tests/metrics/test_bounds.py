"""Bounds and quantiles in Go's form, as kuma-dp writes them."""

from __future__ import annotations

import pytest

from kumadp.exposition.reader import Family, Piece
from kumadp.metrics.bounds import go_float, with_go_bounds
from tests.metrics.test_server import at, own_metrics, policy
from tests.support.expositions import Exposition, collecting, exposed


# As strconv.FormatFloat(f, 'g', -1, 64) returns them; expfmt for infinities and NaN.
@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("1800000", "1.8e+06"),
        ("1000000", "1e+06"),
        ("999999", "999999"),
        ("1234567", "1.234567e+06"),
        ("123456.50", "123456.5"),
        ("100000", "100000"),
        ("0.5", "0.5"),
        ("10", "10"),
        ("10.0", "10"),
        ("1e0", "1"),
        ("0.0001", "0.0001"),
        ("0.00001", "1e-05"),
        ("0.000123450", "0.00012345"),
        ("0.0", "0"),
        ("-0.99", "-0.99"),
        ("1e21", "1e+21"),
        ("123456789012345678", "1.2345678901234568e+17"),
        ("5e-324", "5e-324"),
        ("inf", "+Inf"),
        ("+Inf", "+Inf"),
        ("-Inf", "-Inf"),
        ("nan", "NaN"),
        ("often", "often"),
        ("", ""),
    ],
)
def test_a_bound_is_written_as_go_does(text: str, written: str) -> None:
    assert go_float(text.encode()).decode() == written
    family = Family(b"took")
    family.kind = b"histogram"
    line = 'took_bucket{a="1.0",le="%s",file="2.0"} 3.0\n'
    assert with_go_bounds(Piece(family, (line % text).encode())).samples.decode() == line % written


def test_cached_bounds_are_replaced_too() -> None:
    family = Family(b"took")
    family.kind = b"histogram"
    lines = b'took_bucket{le="%b"} 1\ntook_bucket{a="b",le="%b",c="1.0"} 1\ntook_bucket{a="b",le="+Inf"} 2\n'
    for _ in range(3):
        for text in (b"1800000", b"1.0", b"0.5", b"1.8e+06", b"180000"):
            written = with_go_bounds(Piece(family, lines % (text, text))).samples
            assert written == lines % (go_float(text), go_float(text))
    spaced = b'took_bucket{a="b", le="1.0"} 1\n'
    assert with_go_bounds(Piece(family, spaced)).samples == spaced.replace(b"1.0", b"1")


def test_only_bounds_are_changed() -> None:
    family = Family(b"took")
    family.kind = b"histogram"
    for line in (
        b'took_bucket{scale="1.0"} 1\n',
        b'took_bucket{a="{le=\\"1.0\\"",b="x ,le=",c="1.0"} 1\n',
        b'took_bucket{quantile="1.0"} 1\n',
    ):
        assert with_go_bounds(Piece(family, line)).samples == line
    family.kind = b"gauge"
    assert with_go_bounds(Piece(family, b'took{le="1.0"} 1\n')).samples == b'took{le="1.0"} 1\n'


ENVOY = """# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="b-0011223344556677",le="1800000"} 1
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="b-1111223344556677",le="1800000"} 2
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="b-0011223344556677",le="+Inf"} 1
"""
APP = """# TYPE app histogram
app_bucket{le="1.0"} 1
app_bucket{le="+Inf"} 1
# TYPE took summary
took{quantile="0.50"} 1
"""
OWN = b'# TYPE kuma_dp_dns_x histogram\nkuma_dp_dns_x_bucket{le="1.0"} 1\n'


async def test_sources_that_kuma_dp_rewrites_have_bounds_in_go_form() -> None:
    envoy, app = Exposition(ENVOY), Exposition(APP)
    async with exposed(envoy, app), collecting(at(app, envoy=envoy, own=own_metrics(OWN))) as collector:
        legacy = await collector.scrape()
        collector.server.apply(policy(app))
        by_policy = await collector.scrape("/meshmetric")
    assert 'envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="b",le="1.8e+06",' in legacy.text
    assert legacy.value('kuma_dp_dns_x_bucket{le="1"}') == 1
    # kuma-dp forwards an application's text unchanged.
    assert legacy.value('app_bucket{le="1.0"}') == 1
    assert (
        'envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="b-0011223344556677",le="1.8e+06",' in by_policy.text
    )
    assert 'app_bucket{le="1",' in by_policy.text
    assert 'took{quantile="0.5",' in by_policy.text
    assert 'kuma_dp_dns_x_bucket{le="1",' in by_policy.text
