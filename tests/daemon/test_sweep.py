"""When what is left is to be ended; a booted systemd shows the same in tests/hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.daemon.sweep import is_over, sweep
from kumadp.host.private_file import write_json, write_private
from kumadp.host.process_identity import boot_id
from kumadp.host.state_file import FORMAT
from kumadp.host.work_dir import STATE_FILE, TOKEN_FILE

if TYPE_CHECKING:
    from pathlib import Path


async def test_files_with_the_token_of_a_killed_kumadp_go_and_the_user_s_own_stay(tmp_path: Path) -> None:
    work, elsewhere = tmp_path / "work", tmp_path / "other.token"
    work.mkdir(mode=0o700)
    written, own = work / TOKEN_FILE, work / "bootstrap.yaml"
    for path in (written, own, elsewhere):
        write_private(path, b"x")
    removed = [str(written), str(elsewhere), str(work / "a\0b")]
    state = {"format": FORMAT, "boot": boot_id(), "pid": 1, "start_time": 1, "parts": {"removed_at_end": removed}}
    write_json(work / STATE_FILE, state)
    assert await sweep(work, 1.0) == []
    assert not written.exists()
    assert not (work / STATE_FILE).exists()
    assert own.exists()
    assert elsewhere.exists()


def systemctl(folder: Path, output: str, code: int = 0) -> dict[str, str]:
    program = folder / "systemctl"
    program.write_text(f"#!/bin/sh\necho '{output}'\nexit {code}\n")
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
