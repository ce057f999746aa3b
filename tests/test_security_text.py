"""The section on security names tests for each of its claims; they exist, and every kind of attacker has some."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "kumadp" / "README.md"
ATTACKERS = {"network peer", "local user", "workload", "control plane", "next kumadp", "a package index"}


def rows() -> list[list[str]]:
    section = README.read_text().split("\n## Security\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table][1:]


def test_every_test_that_the_section_names_is_there() -> None:
    for row in rows():
        named = re.findall(r"\[`(\w+)`\]\(([^)]+)\)", row[3])
        assert named, row
        for name, path in named:
            text = (README.parent / path).resolve().read_text()
            assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), (name, path)


def test_every_kind_of_attacker_has_rows_of_four_cells() -> None:
    assert {row[0] for row in rows()} == ATTACKERS
    assert all(len(row) == 4 and all(row) for row in rows())


def test_how_to_report_a_vulnerability_is_written() -> None:
    assert "To report a vulnerability" in README.read_text()
