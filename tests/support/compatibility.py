"""Results of the tests that need a control plane, by its version.

Tests carry ``contract(item)``, a run stores results, the table in tests/README.md shows them.
``KUMADP_COMPATIBILITY=<version of KUMA_CP>`` has a run store its results; ``python -m tests.support.compatibility``
writes the table there again.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.readme_tables import write_in_readme

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "tests" / "data" / "compatibility.json"
# The last one is a snapshot of the development of 3.0, of its newest commit of 2026-08-21.
VERSIONS = ("2.8.8", "2.13.5", "2.14.3", "3.0-dev")
HEADINGS = {"3.0-dev": "3.0 (snapshot of 2026-08-21)"}
# How the reason begins of a test that is skipped, as the version has not what it tests.
GONE = "gone with this version of Kuma"
NOT_IN_IT = "not in it"

Results = dict[str, dict[str, str]]


def _items(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.contract":
            for argument in decorator.args:
                assert isinstance(argument, ast.Constant)
                yield str(argument.value)


def marked() -> dict[str, list[str]]:
    """Tests of each item (``path::name``), items in alphabetical order."""
    items: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.contract(" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for item in _items(node):
                    items.setdefault(item, []).append(f"{path.relative_to(ROOT).as_posix()}::{node.name}")
    return dict(sorted(items.items()))


def stored() -> Results:
    """``passed``, ``failed`` or ``not in it`` by version and test."""
    results: Results = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    return results


def store(version: str, results: Mapping[str, str]) -> None:
    """Put the results of a run into the file; those of other tests stay, where the tests are still there."""
    current = {test for tests in marked().values() for test in tests}
    versions = stored()
    merged = {**versions.get(version, {}), **results}
    versions[version] = {test: merged[test] for test in sorted(merged) if test in current}
    STORE.write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _verdict(results: Mapping[str, str], tests: list[str]) -> str:
    outcomes = {results.get(test, "not run") for test in tests}
    return next(verdict for verdict in ("failed", "not run", "passed", NOT_IN_IT) if verdict in outcomes)


def table(results: Results) -> str:
    """The table of tests/README.md, with its heading."""
    headings = [HEADINGS.get(version, version) for version in VERSIONS]
    lines = [f"| item | {' | '.join(headings)} | how checked |", f"|---{'|---' * len(VERSIONS)}|---|"]
    for item, tests in marked().items():
        verdicts = " | ".join(_verdict(results.get(version, {}), tests) for version in VERSIONS)
        shown = ", ".join(f"[`{test.split('::')[1]}`]({test.split('::')[0].removeprefix('tests/')})" for test in tests)
        lines.append(f"| {item} | {verdicts} | {shown} |")
    return "\n".join(lines) + "\n"


def write() -> None:
    """Write the table into tests/README.md."""
    write_in_readme("compatibility", table(stored()))


if __name__ == "__main__":
    write()
