"""The demo's table, drawn from a status."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec.structs

from kumadp.cli.demo.stage import DemoPorts
from kumadp.cli.demo.table import Scene, Screen, child_state, headline, render

if TYPE_CHECKING:
    import pytest

RUNNING = {"state": "RUNNING", "pid": 77, "restarts": 0, "last_exit": "", "reason": ""}


def status(**changes: Any) -> dict[str, Any]:
    return {"phase": "READY", "since": 1000.0, "pid": 5, "ready": True, "children": {"envoy": RUNNING}, **changes}


def scene(folder: Path = Path("/demo")) -> Scene:
    return Scene(DemoPorts(), folder / "mesh", 5, workload_runs=True)


def state_of(what: str, lines: list[str]) -> str:
    line = next(line for line in lines if line.startswith(what))
    return re.split(r"\s{2,}", line)[2]


def test_traffic_is_down_while_envoy_is_and_probes_are_not() -> None:
    dead = {**RUNNING, "state": "BACKOFF", "pid": None, "restarts": 1, "last_exit": "signal 9 (KILL)"}
    lines = render(scene(), status(ready=False, children={"envoy": dead}), 1000.0)
    assert state_of("inbound", lines) == "down"
    assert state_of("virtual probes", lines) == "up"
    assert state_of("Envoy ", lines) == "backoff, 1 restart"
    assert "Last exit: signal 9 (KILL)" in lines


def test_a_workload_that_died_is_down() -> None:
    lines = render(msgspec.structs.replace(scene(), workload_runs=False), status(), 1000.0)
    assert state_of("workload web", lines) == "down"
    assert state_of("inbound", lines) == "up"


def test_no_text_makes_the_table_wider() -> None:
    child = {**RUNNING, "restarts": 2, "last_exit": "ended, its last line: " + "x" * 500}
    wide = [line for line in render(scene(), status(children={"envoy": child}), 1000.0) if len(line) > 160]
    assert wide == [f"Last exit: {child['last_exit']}"]


def test_each_row_has_a_command_that_names_its_port() -> None:
    lines = render(scene(), status(), 1000.0)
    ports = DemoPorts()
    for what, port in (("inbound", ports.inbound), ("DNS", ports.dns), ("readiness", ports.readiness)):
        line = next(line for line in lines if line.startswith(what))
        assert str(port) in re.split(r"\s{2,}", line)[3]


def test_the_drain_counts_down_from_its_start_and_never_below_zero() -> None:
    draining = status(phase="DRAINING", ready=False)
    assert "5 s left" in headline(scene(), draining, 1000.0)
    assert "2 s left" in headline(scene(), draining, 1003.5)
    assert "0 s left" in headline(scene(), draining, 1099.0)


def test_traffic_drains_while_the_demo_does() -> None:
    lines = render(scene(), status(ready=False, phase="DRAINING"), 1000.0)
    assert state_of("inbound", lines) == "draining"
    assert state_of("virtual probes", lines) == "up"


def test_a_part_that_failed_permanently_is_shown_with_its_reason() -> None:
    lines = render(scene(), status(fatal={"standalone": "the folder is gone"}), 1000.0)
    assert any("standalone" in line and "the folder is gone" in line for line in lines)
    assert not any("FAILED" in line for line in render(scene(), status(), 1000.0))


def test_a_child_that_is_not_there_is_down() -> None:
    assert child_state({}) == "down"


def test_unchanged_rows_are_not_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(sys.stdout)
    screen.show(["one", "two"])
    screen.show(["one", "two"])
    assert capsys.readouterr().out == "one\ntwo\n"
    screen.show(["three"])
    assert capsys.readouterr().out == "\x1b[2F\x1b[Jthree\n"


def test_rows_below_the_screen_are_omitted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((10, 4)))
    screen = Screen(sys.stdout)
    screen.show(["one", "x" * 15, "three", "four"])
    assert capsys.readouterr().out == f"one\n{'x' * 15}\n"
    screen.show(["one"])
    assert capsys.readouterr().out == "\x1b[3F\x1b[Jone\n"
