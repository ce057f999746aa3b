"""Selection of Envoy's metrics by a MeshMetric policy, and the labels that it adds."""

from __future__ import annotations

import pytest

from kumadp.exposition.reader import Family, Piece
from kumadp.metrics.labels import Labels
from kumadp.metrics.profiles import Selection, SelectionSpec
from kumadp.resources.dynconf_bodies import MetricSelector

BASIC = "envoy_cluster_upstream_rq_total"
ALL_ONLY = "envoy_cluster_version"


def selects(name: str, spec: SelectionSpec) -> bool:
    return Selection(spec).selects(name.encode())


@pytest.mark.parametrize(
    ("profiles", "basic", "all_only"),
    [
        ((), True, False),
        (("Basic",), True, False),
        (("None",), False, False),
        (("All",), True, True),
        (("None", "Basic"), True, False),
        (("Basic", "None", "All"), True, True),
        (("Unheard",), True, False),
    ],
)
def test_the_widest_profile_applies(profiles: tuple[str, ...], basic: bool, all_only: bool) -> None:
    spec = SelectionSpec(profiles)
    assert (selects(BASIC, spec), selects(ALL_ONLY, spec)) == (basic, all_only)


@pytest.mark.parametrize(
    "name",
    [
        "envoy_cluster_upstream_rq_time",
        "envoy_server_live",
        "envoy_cluster_membership_healthy",
        "envoy_cluster_membership_total",
        "envoy_cluster_circuit_breakers_default_rq_open",
        "envoy_dns_filter_x",
        "envoy_listener_ssl_handshake",
    ],
)
def test_basic_includes(name: str) -> None:
    assert selects(name, SelectionSpec())


@pytest.mark.parametrize(
    "name", ["envoy_cluster_membership_change", "my_envoy_server", "envoy_cluster_assignment_stale"]
)
def test_basic_excludes(name: str) -> None:
    assert not selects(name, SelectionSpec())


@pytest.mark.parametrize(
    ("selector", "name", "selected"),
    [
        (MetricSelector("Prefix", "envoy_a"), "envoy_ab", True),
        (MetricSelector("Prefix", "envoy_a"), "x_envoy_ab", False),
        (MetricSelector("Exact", "a.b"), "a.b", True),
        (MetricSelector("Exact", "a.b"), "aXb", False),
        (MetricSelector("Exact", "ab"), "abc", False),
        (MetricSelector("Contains", "b"), "abc", True),
        (MetricSelector("Regex", "^a.c$"), "abc", True),
        (MetricSelector("Regex", "b|x"), "abc", True),
        (MetricSelector("Regex", "("), "abc", False),
        (MetricSelector("Regex", r"[[:alpha:]]+\z"), "abc", True),
        (MetricSelector("Regex", "(?<=a)b"), "abc", False),
        (MetricSelector("Regex", r"(a)\1"), "aa", False),
        (MetricSelector("Contains", "a+"), "aaa", False),
        (MetricSelector("Whatever", "abc"), "abc", False),
    ],
)
def test_selectors(selector: MetricSelector, name: str, selected: bool) -> None:
    assert selects(name, SelectionSpec(("None",), include=(selector,))) is selected
    assert selects(name, SelectionSpec(("All",), exclude=(selector,))) is not selected


def test_include_takes_precedence_over_exclude() -> None:
    selectors = (MetricSelector("Exact", BASIC),)
    assert selects(BASIC, SelectionSpec((), exclude=selectors, include=selectors))


def select(lines: str, spec: SelectionSpec = SelectionSpec(), name: str = BASIC) -> str | None:  # noqa: B008
    piece = Selection(spec).select(Piece(Family(name.encode()), lines.encode()))
    return piece.samples.decode() if piece is not None else None


INTERNAL = [
    "_kuma_dynamicconfig",
    "_kuma_metrics_opentelemetry_x",
    "system_ads",
    "ads_cluster",
    "access_log_sink",
    "kuma:envoy:admin",
    "kuma_envoy_admin",
    "kuma:metrics:hijacker",
    "kuma_metrics_hijacker",
    "tracing_zipkin",
]


@pytest.mark.parametrize("label", ["envoy_cluster_name", "envoy_http_conn_manager_prefix", "envoy_listener_address"])
@pytest.mark.parametrize("cluster", INTERNAL)
def test_basic_excludes_series_of_kuma_itself(cluster: str, label: str) -> None:
    own, user = f'x{{a="b",{label}="{cluster}"}} 1\n', f'x{{{label}="backend"}} 2\n'
    assert select(own + user + own) == user
    assert select(user + own) == user
    assert select(own) is None
    assert select(own + user, SelectionSpec(("All",))) == own + user


@pytest.mark.parametrize("cluster", ["bytes-api", "ads_cluster_2", "error_rq", "tracing-api"])
@pytest.mark.parametrize("spec", [SelectionSpec(), SelectionSpec(("Basic",))])
def test_clusters_of_the_user_are_included_whatever_their_names(cluster: str, spec: SelectionSpec) -> None:
    assert select(f'x{{envoy_cluster_name="{cluster}"}} 1\n', spec)


def labelled(lines: str, **labels: str) -> str:
    return Labels(labels).add(Piece(Family(b"x"), lines.encode())).samples.decode()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x 1\n", 'x{mesh="m"} 1\n'),
        ("x{} 1\n", 'x{mesh="m"} 1\n'),
        ('x{a="b"} 1 17\n', 'x{a="b",mesh="m"} 1 17\n'),
        ('x{a="b",} 1\n', 'x{a="b",mesh="m"} 1\n'),
        ('x{a="}\\"} 2"} 1\n', 'x{a="}\\"} 2",mesh="m"} 1\n'),
        ('x{a="b"}\t1\n', 'x{a="b",mesh="m"} 1\n'),
        ('{"x.y",a="b"} 1\n', '{"x.y",a="b",mesh="m"} 1\n'),
        ('x{mesh="other"} 1\n', 'x{mesh="m"} 1\n'),
        ('x{a="b",mesh="o\\"",c="d"} 1\n', 'x{a="b",c="d",mesh="m"} 1\n'),
        ('x{a="b",mesh="o"} 1\n', 'x{a="b",mesh="m"} 1\n'),
        ('x{a="mesh=\\"o\\""} 1\n', 'x{a="mesh=\\"o\\"",mesh="m"} 1\n'),
        ('x{my_mesh="o"} 1\n', 'x{my_mesh="o",mesh="m"} 1\n'),
    ],
)
def test_a_label_is_added(line: str, expected: str) -> None:
    assert labelled(line, mesh="m") == expected
    plain = 'x{q="r"} 5\n'
    assert labelled(plain + line + plain, mesh="m") == plain.replace('"} ', '",mesh="m"} ') + expected + plain.replace(
        '"} ', '",mesh="m"} '
    )


def test_labels_are_escaped() -> None:
    labels = {"kuma.workload": 'a"b\\c\nd', "1x": "y"}
    assert labelled("x 1\n", **labels) == 'x{_1x="y",kuma_workload="a\\"b\\\\c\\nd"} 1\n'
    assert labelled('x{a="b"} 1\n', **labels) == 'x{a="b",_1x="y",kuma_workload="a\\"b\\\\c\\nd"} 1\n'
    assert labelled("x 1\n") == "x 1\n"
