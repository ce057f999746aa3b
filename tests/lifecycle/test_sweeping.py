"""When what is left is to be ended; a booted systemd shows the same in tests/hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.host.private_file import write_private
from kumadp.host.workdir import TOKEN
from kumadp.lifecycle.sweeping import is_over, sweep

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", [TOKEN, "bootstrap.yaml", "bootstrap.2.yaml"])
async def test_a_file_with_the_token_that_a_killed_kumadp_wrote_is_removed(tmp_path: Path, name: str) -> None:
    write_private(tmp_path / name, b"x")
    assert await sweep(tmp_path, 1.0) == []
    assert not (tmp_path / name).exists()


def systemctl(folder: Path, says: str, code: int = 0) -> dict[str, str]:
    program = folder / "systemctl"
    program.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("result", "job", "over"),
    [
        ("success", "", True),
        ("signal", "", False),
        ("signal", "811 kumadp.service stop running", True),
        ("signal", "811 kumadp.service restart running", True),
        ("signal", "811 kumadp.service start running", False),
        ("signal", "811 other.service stop running", False),
        ("watchdog", "", False),
        ("watchdog", "12 other.service start waiting\n13 kumadp.service stop running", True),
        ("exit-code", "", False),
    ],
)
def test_a_unit_is_over_when_it_ended_well_or_a_stop_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: str, job: str, over: bool
) -> None:
    environ = systemctl(tmp_path, job)
    monkeypatch.setenv("PATH", environ["PATH"])
    assert is_over(result, "kumadp.service", environ) is over


@pytest.mark.parametrize(("result", "over"), [("timeout", True), ("signal", False)])
def test_where_systemd_does_not_answer_only_a_stop_that_took_too_long_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: str, over: bool
) -> None:
    environ = systemctl(tmp_path, "Failed to connect to bus", 1)
    monkeypatch.setenv("PATH", environ["PATH"])
    assert is_over(result, "kumadp.service", environ) is over
