"""The compatibility table in tests/README.md is what runs against real control planes gave, and its tests exist."""

from __future__ import annotations

import pytest

from tests.support.compatibility import NOT_IN_IT, VERSIONS, marked, stored, table
from tests.support.readme_tables import in_readme


def test_readme_shows_the_stored_results() -> None:
    assert in_readme("compatibility") == table(stored()), "write it again: python -m tests.support.compatibility"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_test_of_the_contract_has_a_result(version: str) -> None:
    tests = {test for tests in marked().values() for test in tests}
    assert tests
    assert stored()[version].keys() == tests
    assert set(stored()[version].values()) <= {"passed", "failed", NOT_IN_IT}
