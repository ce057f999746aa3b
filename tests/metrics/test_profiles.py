"""What a MeshMetric policy wants of Envoy's metrics, and the labels it adds."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from kumadp.exposition.reader import Family, Piece
from kumadp.metrics.labels import Labels
from kumadp.metrics.profiles import Selection, Wanted


class Chosen(NamedTuple):
    type: str
    match: str


BASIC = "envoy_cluster_upstream_rq_total"
ALL_ONLY = "envoy_cluster_version"


def wants(name: str, wanted: Wanted) -> bool:
    return Selection(wanted).wants(name.encode())


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
def test_the_widest_profile_counts(profiles: tuple[str, ...], basic: bool, all_only: bool) -> None:
    wanted = Wanted(profiles)
    assert (wants(BASIC, wanted), wants(ALL_ONLY, wanted)) == (basic, all_only)


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
def test_basic_has(name: str) -> None:
    assert wants(name, Wanted())


@pytest.mark.parametrize(
    "name", ["envoy_cluster_membership_change", "my_envoy_server", "envoy_cluster_assignment_stale"]
)
def test_basic_has_not(name: str) -> None:
    assert not wants(name, Wanted())


@pytest.mark.parametrize(
    ("selector", "name", "selected"),
    [
        (Chosen("Prefix", "envoy_a"), "envoy_ab", True),
        (Chosen("Prefix", "envoy_a"), "x_envoy_ab", False),
        (Chosen("Exact", "a.b"), "a.b", True),
        (Chosen("Exact", "a.b"), "aXb", False),
        (Chosen("Exact", "ab"), "abc", False),
        (Chosen("Contains", "b"), "abc", True),
        (Chosen("Regex", "^a.c$"), "abc", True),
        (Chosen("Regex", "b|x"), "abc", True),
        (Chosen("Regex", "("), "abc", False),
        (Chosen("Regex", r"[[:alpha:]]+\z"), "abc", True),
        (Chosen("Regex", "(?<=a)b"), "abc", False),
        (Chosen("Regex", r"(a)\1"), "aa", False),
        (Chosen("Contains", "a+"), "aaa", False),
        (Chosen("Whatever", "abc"), "abc", False),
    ],
)
def test_selectors(selector: Chosen, name: str, selected: bool) -> None:
    assert wants(name, Wanted(("None",), include=(selector,))) is selected
    assert wants(name, Wanted(("All",), exclude=(selector,))) is not selected


def test_include_goes_before_exclude() -> None:
    one = (Chosen("Exact", BASIC),)
    assert wants(BASIC, Wanted((), exclude=one, include=one))


def select(lines: str, wanted: Wanted = Wanted(), name: str = BASIC) -> str | None:  # noqa: B008
    piece = Selection(wanted).select(Piece(Family(name.encode()), lines.encode()))
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
def test_basic_leaves_out_what_is_kumas_own(cluster: str, label: str) -> None:
    own, user = f'x{{a="b",{label}="{cluster}"}} 1\n', f'x{{{label}="backend"}} 2\n'
    assert select(own + user + own) == user
    assert select(user + own) == user
    assert select(own) is None
    assert select(own + user, Wanted(("All",))) == own + user


@pytest.mark.parametrize("cluster", ["bytes-api", "ads_cluster_2", "error_rq", "tracing-api"])
@pytest.mark.parametrize("wanted", [Wanted(), Wanted(("Basic",))])
def test_a_cluster_of_the_user_stays_whatever_its_name(cluster: str, wanted: Wanted) -> None:
    assert select(f'x{{envoy_cluster_name="{cluster}"}} 1\n', wanted)


def labelled(lines: str, **labels: str) -> str:
    return Labels(labels).add(Piece(Family(b"x"), lines.encode())).samples.decode()


@pytest.mark.parametrize(
    ("line", "wanted"),
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
def test_a_label_is_added(line: str, wanted: str) -> None:
    assert labelled(line, mesh="m") == wanted
    plain = 'x{q="r"} 5\n'
    assert labelled(plain + line + plain, mesh="m") == plain.replace(
        '"} ', '",mesh="m"} '
    ) * 1 + wanted + plain.replace('"} ', '",mesh="m"} ')


def test_labels_are_written_as_the_format_wants() -> None:
    labels = {"kuma.workload": 'a"b\\c\nd', "1x": "y"}
    assert labelled("x 1\n", **labels) == 'x{_1x="y",kuma_workload="a\\"b\\\\c\\nd"} 1\n'
    assert labelled('x{a="b"} 1\n', **labels) == 'x{a="b",_1x="y",kuma_workload="a\\"b\\\\c\\nd"} 1\n'
    assert labelled("x 1\n") == "x 1\n"
