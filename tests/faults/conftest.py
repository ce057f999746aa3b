"""A rig with steady traffic for each test, and the store of what became of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support import fault_table
from tests.support.faults import FaultRig, open_fault_rig

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture
def fault_rig(request: pytest.FixtureRequest) -> Iterator[FaultRig]:
    """A data plane with steady traffic; `fault_rows` and `with_and_without_mtls` choose whether it has mutual TLS."""
    with open_fault_rig(mtls=request.param) as rig:
        yield rig


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Store the records of a test that has passed, in the group of its file, if the run is to store them."""
    report = yield
    if os.environ.get("KUMADP_FAULTS") and report.when == "call" and report.passed:
        rig = getattr(item, "funcargs", {}).get("fault_rig")
        if isinstance(rig, FaultRig):
            fault_table.store(getattr(item, "module").GROUP, rig.records)  # noqa: B009
    return report
