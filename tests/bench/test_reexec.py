"""150 re-executions in a row under load: none may lose anything; how long the slowest answer took is the figure."""

from __future__ import annotations

import time

import pytest

from tests.support.reexecuted import LOOPS, Load, assert_no_line_is_lost, program

pytestmark = [pytest.mark.bench, pytest.mark.process, pytest.mark.timeout(900)]

TIMES = 150


@pytest.mark.parametrize("loop", LOOPS)
def test_many_re_executions_in_a_row(loop: str, table: list[tuple[str, str, str]]) -> None:
    with program(loop) as running:
        first = running.start()
        begun = time.monotonic()
        with Load(running) as load:
            for _ in range(TIMES):
                running.again()
        each = (time.monotonic() - begun) / TIMES
        last = running.start()
        assert load.failed == []
        assert (last["pid"], last["child"], last["count"]) == (first["pid"], first["child"], TIMES)
        (running.folder / "end").touch()
        assert_no_line_is_lost(running)
    asked = ", ".join(f"{number} {name}" for name, number in load.asked.items())
    table.append((f"{TIMES} re-executions, {loop}: each", f"{each:.2f} s", f"0 failed of {asked}"))
    table.append((f"{TIMES} re-executions, {loop}: slowest answer", f"{load.longest:.2f} s", ""))
