"""Envoy is killed, stopped, starved or broken."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.faults import Row, end_by, fault_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.faults import FaultRig

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

GROUP = "Envoy"


def _ends_by(number: int) -> Callable[[FaultRig], None]:
    return lambda rig: end_by(rig.the_envoy(), number)


ROWS = (
    Row("SIGKILL", _ends_by(signal.SIGKILL), r"envoy ended with signal 9", often=True),
    Row("SIGSEGV", _ends_by(signal.SIGSEGV), r"envoy ended with signal 11"),
)


@fault_rows(ROWS)
def test_envoy(fault_rig: FaultRig, row: Row) -> None:
    row.run(fault_rig)
