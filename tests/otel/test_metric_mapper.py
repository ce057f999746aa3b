"""Expositions as OpenTelemetry's metrics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Histogram, Metric, Sum
from opentelemetry.sdk.resources import Resource

from kumadp.exposition.reader import ExpositionReader
from kumadp.otel.metric_mapper import BATCH, MetricMapper, ScopedPiece

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.sdk.metrics.export import MetricsData

NOW = 1_700_000_000_000_000_000
LABELED = '{envoy_cluster_name="a"}'


def messages(
    text: str, scope: str = "envoy", slices: int = 0, names: Mapping[str, str] | None = None
) -> list[MetricsData]:
    def pieces() -> Iterator[ScopedPiece]:
        reader = ExpositionReader(checks=True)
        data = text.encode()
        step = slices or len(data)
        for at in range(0, len(data), step):
            yield from (ScopedPiece(scope, piece) for piece in reader.feed(data[at : at + step]))
        yield from (ScopedPiece(scope, piece) for piece in reader.end())

    mapper = MetricMapper(Resource({"service.name": "web"}), NOW, names or {})
    result = list(mapper.messages(pieces()))
    for message in result:
        # The official encoder takes it.
        assert encode_metrics(message).ByteSize()
    return result


def metrics(
    text: str, scope: str = "envoy", slices: int = 0, names: Mapping[str, str] | None = None
) -> list[tuple[str, Metric]]:
    return [
        (scoped.scope.name, metric)
        for message in messages(text, scope, slices, names)
        for resource in message.resource_metrics
        for scoped in resource.scope_metrics
        for metric in scoped.metrics
    ]


def points(metric: Metric) -> list[tuple[dict[str, Any], float]]:
    assert isinstance(metric.data, Gauge | Sum)
    return [(dict(point.attributes or {}), point.value) for point in metric.data.data_points]


def test_attributes_have_the_names_of_the_policy() -> None:
    names = {"kuma_proxy_role": "kuma.proxy_role", "kuma_workload": "kuma.workload"}
    labels = 'kuma_proxy_role="sidecar",mesh="default"'
    text = (
        f"# TYPE up gauge\nup{{{labels}}} 1\n# TYPE took histogram\n"
        f'took_bucket{{{labels},le="+Inf"}} 1\ntook_sum{{{labels}}} 1\ntook_count{{{labels}}} 1\n'
    )
    expected = {"kuma.proxy_role": "sidecar", "mesh": "default"}
    (_, gauge), (_, histogram) = metrics(text, names=names)
    assert points(gauge) == [(expected, 1.0)]
    assert isinstance(histogram.data, Histogram)
    assert [point.attributes for point in histogram.data.data_points] == [expected]


def test_gauge_and_counter() -> None:
    (gauge_scope, gauge), (_, counter) = metrics(
        "# HELP up Whether.\n# TYPE up gauge\n"
        f"up{LABELED} 1.5\nup 2 1600000000123\n"
        '# TYPE served_total counter\nserved_total{a="1",b="\\"x\\\\n\\n"} 7\n'
    )
    assert (gauge_scope, gauge.name, gauge.description) == ("envoy", "up", "Whether.")
    assert isinstance(gauge.data, Gauge)
    assert points(gauge) == [({"envoy_cluster_name": "a"}, 1.5), ({}, 2.0)]
    assert [point.time_unix_nano for point in gauge.data.data_points] == [NOW, 1_600_000_000_123_000_000]
    assert isinstance(counter.data, Sum)
    assert counter.data.is_monotonic
    assert counter.data.aggregation_temporality is AggregationTemporality.CUMULATIVE
    assert points(counter) == [({"a": "1", "b": '"x\\n\n'}, 7.0)]


HISTOGRAM = "".join(
    f'took_bucket{{c="{c}",le="{le}"}} {count}\n'
    + (f'took_sum{{c="{c}"}} 12.5\ntook_count{{c="{c}"}} 9\n' if le == "+Inf" else "")
    for c in ("a", "b")
    for le, count in (("0.5", 2), ("1", 2), ("5", 8), ("+Inf", 9))
)


@pytest.mark.parametrize("slices", [0, 10, 60, 150])
def test_histograms_have_the_count_of_each_bucket(slices: int) -> None:
    result = metrics(f"# TYPE took histogram\n{HISTOGRAM}", slices=slices)
    data_points = []
    for _, metric in result:
        assert metric.name == "took"
        assert isinstance(metric.data, Histogram)
        assert metric.data.aggregation_temporality is AggregationTemporality.CUMULATIVE
        data_points += [
            (dict(p.attributes or {}), p.explicit_bounds, p.bucket_counts, p.count, p.sum)
            for p in metric.data.data_points
        ]
    assert data_points == [({"c": c}, [0.5, 1.0, 5.0], [2, 0, 6, 1], 9, 12.5) for c in ("a", "b")]


def test_a_histogram_may_come_in_any_order() -> None:
    lines = sorted(HISTOGRAM.splitlines())
    result = metrics("# TYPE took histogram\n" + "\n".join(lines) + "\n", slices=40)
    counts = [p.bucket_counts for _, m in result if isinstance(m.data, Histogram) for p in m.data.data_points]
    assert counts == [[2, 0, 6, 1]] * 2


def test_an_incomplete_histogram_is_dropped() -> None:
    assert metrics('# TYPE took histogram\ntook_bucket{le="1"} 2\n') == []


def test_a_summary_is_a_gauge_with_quantiles_and_two_sums() -> None:
    result = metrics('# TYPE t summary\nt{quantile="0.5"} NaN\nt{quantile="0.9"} 3\nt_sum 9\nt_count 4\n')
    by_name = {metric.name: metric for _, metric in result}
    (first, half), (second, most) = points(by_name["t"])
    assert (first, second, most) == ({"quantile": "0.5"}, {"quantile": "0.9"}, 3.0)
    assert math.isnan(half)
    for name, value in (("t_sum", 9.0), ("t_count", 4.0)):
        data = by_name[name].data
        assert isinstance(data, Sum)
        assert data.is_monotonic
        assert points(by_name[name]) == [({}, value)]


def test_untyped_metrics_are_dropped() -> None:
    assert metrics("# TYPE a untyped\na 1\nb 2\n") == []


def test_a_sample_may_name_its_scope() -> None:
    text = '# TYPE a gauge\na{otel_scope_name="lib",otel_scope_version="2",x="1"} 1\na{x="2"} 2\n'
    result = metrics(text, scope="app")
    assert [(scope, points(metric)) for scope, metric in result] == [
        ("lib", [({"x": "1"}, 1.0)]),
        ("app", [({"x": "2"}, 2.0)]),
    ]


def test_many_points_are_many_messages() -> None:
    lines = "".join(f'a{{x="{number}"}} {number}\n' for number in range(50_000))
    result = messages(f"# TYPE a gauge\n{lines}")
    sizes = [
        sum(
            len(metric.data.data_points)
            for scoped in message.resource_metrics[0].scope_metrics
            for metric in scoped.metrics
        )
        for message in result
    ]
    assert sum(sizes) == 50_000
    assert max(sizes) < 2 * BATCH


def test_other_scope_labels_are_its_attributes() -> None:
    text = (
        "# TYPE a gauge\n"
        'a{otel_scope_name="lib",otel_scope_schema_url="s",otel_scope_team="red",x="1"} 1\n'
        'a{otel_scope_name="lib",otel_scope_team="blue"} 2\n'
        'a{otel_scope_team="blue"} 3\n'
    )
    result = {
        (scoped.scope.name, scoped.scope.schema_url, dict(scoped.scope.attributes or {})["team"]): points(
            scoped.metrics[0]
        )
        for message in messages(text, "app")
        for scoped in message.resource_metrics[0].scope_metrics
    }
    assert result == {
        ("lib", "s", "red"): [({"x": "1"}, 1.0)],
        ("lib", "", "blue"): [({}, 2.0)],
        ("app", "", "blue"): [({}, 3.0)],
    }


def test_histograms_of_one_family_keep_their_scopes() -> None:
    lines = "".join(
        f'took_bucket{{otel_scope_name="{scope}",le="+Inf"}} 1\n'
        f'took_sum{{otel_scope_name="{scope}"}} 1\ntook_count{{otel_scope_name="{scope}"}} 1\n'
        for scope in ("one", "two")
    )
    result = metrics(f"# TYPE took histogram\n{lines}")
    assert sorted(scope for scope, _ in result) == ["one", "two"]


def test_quoted_names_are_unquoted() -> None:
    text = (
        '# TYPE "h.x" histogram\n{"h.x_bucket","l.m"="=",le="+Inf"} 1\n{"h.x_sum","l.m"="="} 1\n'
        '{"h.x_count","l.m"="="} 1\n# TYPE "c.x" counter\n{"c.x",a="\\"b,"} 2\n'
    )
    (_, histogram), (_, counter) = metrics(text)
    assert isinstance(histogram.data, Histogram)
    assert (histogram.name, [dict(p.attributes or {}) for p in histogram.data.data_points]) == ("h.x", [{"l.m": "="}])
    assert (counter.name, points(counter)) == ("c.x", [({"a": '"b,'}, 2.0)])


@pytest.mark.parametrize("time", ["9" * 400, "-1", "9" * 20])
def test_an_invalid_time_is_replaced_by_now(time: str) -> None:
    ((_, metric),) = metrics(f"# TYPE a gauge\na 1 {time}\n")
    assert isinstance(metric.data, Gauge)
    assert [point.time_unix_nano for point in metric.data.data_points] == [NOW]


def test_counts_out_of_range_are_dropped() -> None:
    assert metrics('# TYPE t histogram\nt_bucket{le="+Inf"} 1e300\nt_sum 1\nt_count 1e300\n') == []
    ((_, metric),) = metrics('# TYPE t histogram\nt_bucket{le="1"} 1e300\nt_bucket{le="+Inf"} 3\nt_sum 1\nt_count 3\n')
    assert isinstance(metric.data, Histogram)
    assert metric.data.data_points[0].bucket_counts == [3, 0]
