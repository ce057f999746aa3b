"""Rewritten regexes of stat tags find the same tag in every name, and leave the same rest of it.

Envoy uses std::regex with ECMAScript's rules, as libc++ has them; here Python's `re` is used. That is sound for these
regexes: both take the leftmost match and, of those that begin there, the first by the order of alternatives, greedy
or lazy; and all that the regexes have (``.``, ``\\S``, ``[0-9]``, lookahead, ``^``) means the same for ASCII without a
line break. A real Envoy is compared in tests/integration/test_stat_tags.py.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings

from kumadp.bootstrap.comparison import differences
from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.stat_tags import REWRITTEN, with_fast_stat_tags
from tests.support.stat_names import UNLIKE_ENVOY, Extracted, extract, prefix_of, skipped_by, stat_names

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "captures"
CAPTURED = sorted(path.parent.relative_to(CAPTURES).as_posix() for path in CAPTURES.glob("*/*/bootstrap.yaml"))
STREAMS_CLOSED = r"^grpc.*streams_closed(_([0-9]+))"
KAFKA = r"^kafka(\.(\S*[0-9]))\."
RBAC = r"((.+?)\.)rbac\."


def envoy_extract(regex: str, name: str) -> Extracted:
    """What Envoy does with a name, with regexes left out that it skips for it."""
    return Extracted(None, name) if skipped_by(regex, name) else extract(regex, name)


@pytest.mark.parametrize("regex", REWRITTEN)
@settings(max_examples=300)
@given(name=stat_names())
@example(name="kafka.broker-1.request.produce_request")
@example(name="kafka.1.2.x")
@example(name="kafka..1.")
@example(name="grpc.a.streams_closed_3")
@example(name="grpc.streams_closed_1.streams_closed_22")
@example(name="grpc.streams_closed_1_2_")
@example(name="inbound_127_0_0_1_80.rbac.allowed")
@example(name="..rbac.rbac.denied")
@example(name=".rbac.")
@example(name="rbac.rbac.rbac.")
@example(name="cluster.kri_msvc_default_zone__worker_8080.rbac.upstream_cx_total")
def test_the_same_tag_and_the_same_rest(regex: str, name: str) -> None:
    assume(not (regex == STREAMS_CLOSED and UNLIKE_ENVOY.match(name)))
    expected = extract(regex, name)
    assert extract(REWRITTEN[regex], name) == expected
    # What Envoy skips would not have matched.
    assert envoy_extract(REWRITTEN[regex], name) == expected


def test_names_that_would_differ_are_none_of_envoy() -> None:
    """The number comes from statistics of gRPC clients, whose scope is always "grpc.<prefix>."."""
    name = "grpcx.streams_closed_1"
    assert UNLIKE_ENVOY.match(name)
    assert not UNLIKE_ENVOY.match("grpc.streams_closed_1")
    assert extract(STREAMS_CLOSED, name) == Extracted("1", "grpcx.streams_closed")
    assert extract(REWRITTEN[STREAMS_CLOSED], name) == Extracted(None, name)


def test_each_regex_is_hit() -> None:
    hits = dict.fromkeys(REWRITTEN, 0)

    @settings(derandomize=True, max_examples=400)
    @given(name=stat_names())
    def count(name: str) -> None:
        for regex in hits:
            hits[regex] += extract(regex, name).value is not None

    count()
    assert all(hits.values()), hits


@pytest.mark.parametrize(("regex", "prefix"), [(STREAMS_CLOSED, "grpc"), (KAFKA, "kafka"), (RBAC, "")])
def test_envoy_can_skip_them(regex: str, prefix: str) -> None:
    assert prefix_of(regex) == ""
    assert prefix_of(REWRITTEN[regex]) == prefix
    assert REWRITTEN[regex].startswith("^")


def tags_of(tree: dict[str, Any]) -> list[tuple[str, str]]:
    return [(tag["tagName"], tag["regex"]) for tag in tree["statsConfig"]["statsTags"]]


def captured(name: str) -> dict[str, Any]:
    return parse_bootstrap((CAPTURES / name / "bootstrap.yaml").read_bytes())


@pytest.mark.parametrize("name", CAPTURED)
def test_every_control_plane_s_bootstrap(name: str) -> None:
    tree = captured(name)
    original = copy.deepcopy(tree)
    rewritten = with_fast_stat_tags(tree)
    assert tree == original
    assert tags_of(rewritten) == [(tag, REWRITTEN.get(regex, regex)) for tag, regex in tags_of(tree)]
    known = {STREAMS_CLOSED, RBAC} if name.startswith("kuma-3") else {STREAMS_CLOSED, KAFKA, RBAC}
    assert {regex for _, regex in tags_of(tree)} - {regex for _, regex in tags_of(rewritten)} == known
    # Nothing else changes.
    assert {change.path.partition(".")[0] for change in differences(tree, rewritten)} == {"statsConfig"}
    assert with_fast_stat_tags(rewritten) == rewritten


@pytest.mark.parametrize(
    "tags",
    [
        pytest.param([{"tagName": "own", "regex": "(own_(.+?)_rbac)"}], id="unknown"),
        pytest.param([{"tagName": "status", "regex": STREAMS_CLOSED + "x"}], id="nearly known"),
        pytest.param([{"tagName": "zone", "fixedValue": "east"}], id="no regex"),
        pytest.param([{"tagName": "status", "regex": RBAC}, {"tagName": "status", "regex": "(x)"}], id="two of a name"),
        pytest.param([{"tagName": "envoy.listener_address", "regex": RBAC}], id="also one of Envoy"),
        pytest.param([{"tagName": "listener", "regex": None}, "text", 7, None], id="not for Envoy"),
        pytest.param("text", id="no list"),
        pytest.param(None, id="null"),
    ],
)
def test_others_are_left_as_they_are(tags: Any) -> None:
    tree = {"node": {"id": "a"}, "statsConfig": {"statsTags": tags}}
    assert with_fast_stat_tags(tree) == tree


@pytest.mark.parametrize("tree", [{}, {"statsConfig": None}, {"statsConfig": {"useAllDefaultTags": True}}, {"a": [1]}])
def test_without_tags_nothing_changes(tree: dict[str, Any]) -> None:
    assert with_fast_stat_tags(tree) == tree


def test_names_in_snake_case() -> None:
    tree = {"stats_config": {"stats_tags": [{"tag_name": "listener", "regex": RBAC}]}}
    expected = {"stats_config": {"stats_tags": [{"tag_name": "listener", "regex": REWRITTEN[RBAC]}]}}
    assert json.dumps(with_fast_stat_tags(tree)) == json.dumps(expected)
