"""The table in tests/README.md is what the stored records give."""

from __future__ import annotations

from tests.support.fault_table import GROUPS, stored, table
from tests.support.readme_tables import in_readme


def test_readme_shows_the_stored_records() -> None:
    assert in_readme("faults") == table(stored()), "write it again: python -m tests.support.fault_table"


def test_every_group_is_known() -> None:
    assert stored().keys() <= set(GROUPS)
