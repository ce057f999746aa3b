"""What `make bench` makes of its rounds: medians, ratios, goals, JSON and charts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from tests.bench.figures import KUMADP, NO_PEER, PEER, Figures, shorten
from tests.bench.goals import GOALS, Goal
from tests.support.charts import Bar, Series, bar_chart, line_chart

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"


def measured(peer: str = "kuma-dp") -> Figures:
    figures = Figures(peer)
    figures.add("start.cpu", KUMADP, 0.3, 0.5, 0.35)
    figures.add("dns.cpu", KUMADP, 9.0)
    if peer:
        figures.add("start.cpu", PEER, 0.2)
        figures.add("dns.cpu", PEER, 10.0, 20.0)
    return figures


def test_goals_have_different_keys_and_one_limit_at_most() -> None:
    assert len({goal.key for goal in GOALS}) == len(GOALS)
    assert all(goal.most is None or goal.least is None for goal in GOALS)


@pytest.mark.parametrize(
    ("goal", "median", "ratio", "met"),
    [
        (Goal("k", "", "s", most=1.0), 1.0, 9.0, True),
        (Goal("k", "", "s", most=1.0), 1.1, None, False),
        (Goal("k", "", "s", most=0.5, ratio=True), 9.0, 0.5, True),
        (Goal("k", "", "s", most=0.5, ratio=True), 0.1, 0.6, False),
        (Goal("k", "", "s", most=0.5, ratio=True), 0.1, None, None),
        (Goal("k", "", "/s", least=1.5, ratio=True), 9.0, 1.4, False),
        (Goal("k", "", "/s", least=1.5, ratio=True), 9.0, 1.5, True),
        (Goal("k", "", "s"), 9.0, 1.0, None),
    ],
)
def test_a_goal_is_for_the_median_or_for_the_ratio(
    goal: Goal, median: float, ratio: float | None, met: bool | None
) -> None:
    assert goal.is_met(median, ratio) is met


def test_the_table_has_medians_spread_ratio_and_whether_the_goal_is_met() -> None:
    head, cpu, dns = measured().table().splitlines()
    assert head.split() == ["WHAT", "KUMADP", "KUMA-DP", "RATIO", "GOAL"]
    assert cpu.split("  ")[1:] != []
    assert "0.35 (0.3 to 0.5)" in cpu
    assert cpu.endswith("1.75x  <= 0.4 s  met")
    assert "15 (10 to 20)" in dns
    assert dns.endswith("0.60x  <= 0.5x   NOT MET")


def test_without_a_peer_kumadp_is_measured_alone_and_that_is_printed() -> None:
    lines = measured("").table().splitlines()
    assert lines[-1] == NO_PEER
    assert lines[1].endswith("<= 0.4 s  met")
    assert lines[2].endswith("<= 0.5x")


def test_the_files(tmp_path: Path) -> None:
    figures = measured()
    figures.more.append(("something", "1 s", "1 1"))
    figures.write(tmp_path)
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["peer"] == "kuma-dp"
    assert written["more"] == [{"what": "something", "median": "1 s", "rounds": "1 1"}]
    cpu, dns = written["rows"]
    assert cpu["kumadp"] == {"median": 0.35, "low": 0.3, "high": 0.5, "rounds": [0.3, 0.5, 0.35]}
    assert (cpu["key"], cpu["unit"], cpu["goal"], cpu["met"]) == ("start.cpu", "s", "<= 0.4 s", True)
    assert (dns["ratio"], dns["met"]) == (0.6, False)
    assert len(ElementTree.parse(tmp_path / "figures.svg").findall(f"{SVG}rect")) == 2


def test_nothing_to_compare_is_no_chart(tmp_path: Path) -> None:
    measured("").write(tmp_path)
    assert json.loads((tmp_path / "figures.json").read_text())["peer"] is None
    assert not (tmp_path / "figures.svg").exists()


def test_a_bar_is_as_long_as_its_value_and_cut_at_the_end_of_the_axis() -> None:
    tree = ElementTree.fromstring(
        bar_chart("a < b", [Bar("one", 1.0, "1x"), Bar("long", 9.0, "9x", 0.5, good=False)], 2.0)
    )
    one, long = tree.findall(f"{SVG}rect")
    assert float(long.get("width", "")) == pytest.approx(2 * float(one.get("width", "")))
    assert (one.get("class"), long.get("class")) == ("plain", "bad")
    assert tree.findtext(f"{SVG}title") == "a < b"
    assert [line for line in tree.findall(f"{SVG}line") if line.get("class") == "mark"]


def test_lines_are_logarithmic_and_begin_at_one() -> None:
    text = line_chart("t", [Series("a", [(0, 0), (1, 1), (2, 10), (3, 100)])], x="x", y="y")
    [line] = ElementTree.fromstring(text).findall(f"{SVG}polyline")
    heights = [float(point.split(",")[1]) for point in line.get("points", "").split()]
    assert heights[0] == heights[1]
    assert heights[1] - heights[2] == pytest.approx(heights[2] - heights[3], abs=0.2)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.0123, "0.0123"), (1.5, "1.5"), (99.94, "99.9"), (1234.5, "1234")]
)
def test_three_digits(value: float, text: str) -> None:
    assert shorten(value) == text
