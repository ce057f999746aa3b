"""The table in tests/README.md is what the stored records give."""

from __future__ import annotations

from tests.support.fault_table import GROUPS, in_readme, stored, table


def test_readme_shows_the_stored_records() -> None:
    assert in_readme() == table(stored()), "write it again: python -m tests.support.fault_table"


def test_every_group_is_known() -> None:
    assert stored().keys() <= set(GROUPS)
