"""The tables of tests/README.md that are written from stored results, each between two comments with its name."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def _parts(name: str) -> tuple[str, str, str]:
    """What is before the table with its comment, the table, and what is behind it with its comment."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    table, end, after = rest.partition(f"<!-- end of {name} -->")
    assert begin, f"{README} has no table {name}"
    assert end, f"the table {name} of {README} has no end"
    return before + begin, table, end + after


def in_readme(name: str) -> str:
    """Return the table that is there, with its heading."""
    return _parts(name)[1]


def write_in_readme(name: str, table: str) -> None:
    """Replace the table."""
    before, _, after = _parts(name)
    README.write_text(before + table + after, encoding="utf-8")
