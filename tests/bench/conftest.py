"""One table of figures for each file of measurements, and one of all rows that have a goal at the end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench.figures import Figures
from tests.bench.sides import peer_side

if TYPE_CHECKING:
    from collections.abc import Iterator

OUT = Path(os.environ.get("KUMADP_BENCH_OUT", ".cache/bench"))
_peer = peer_side()
_figures = Figures(_peer.name if _peer is not None else "")


@pytest.fixture(autouse=True)
def _compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, str, str]]]:
    rows: list[tuple[str, str, str]] = []
    yield rows
    lines = [f"{what:<58}{median:>12}  {rounds}" for what, median, rounds in [("WHAT", "MEDIAN", "ROUNDS"), *rows]]
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    _figures.more.extend(rows)


@pytest.fixture(scope="session")
def figures() -> Figures:
    """What is compared with kuma-dp and has a goal."""
    return _figures


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, and write it."""
    if not _figures.rows and not _figures.more:
        return
    _figures.write(OUT)
    if _figures.rows:
        terminalreporter.write_line("")
        terminalreporter.write(_figures.table())
    terminalreporter.write_line(f"written: {OUT}/figures.json")
