"""One table of figures for each file of measurements."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, str, str]]]:
    rows: list[tuple[str, str, str]] = []
    yield rows
    lines = [f"{what:<58}{median:>12}  {rounds}" for what, median, rounds in [("WHAT", "MEDIAN", "ROUNDS"), *rows]]
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
