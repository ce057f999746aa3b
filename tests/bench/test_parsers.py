"""What each parser of text from outside takes, at sizes that double: the time of a linear one doubles at most."""

from __future__ import annotations

import time

import pytest

from tests.support.hostile_texts import CASES, Hostile, processor_time

pytestmark = pytest.mark.bench


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_time_by_size(case: Hostile) -> None:
    took = []
    for size in (case.size // 8, case.size // 4, case.size // 2, case.size):
        since = time.process_time()
        with processor_time(60):
            case.run(size)
        took.append((time.process_time() - since) * 1000)
    shown = ", ".join(f"{seconds:.0f}" for seconds in took)
    print(f"\n{case.name}: {shown} ms of processor time for 1/8, 1/4, 1/2 and all of {case.size >> 10} KB")  # noqa: T201
