"""The state file: its content, which processes are adopted, and how a bad file is handled."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from kumadp.host import state_file as state
from kumadp.host.process_identity import boot_id, identity_of, start_time_of
from kumadp.host.state_file import FORMAT, ChildRecord, SavedState, StateFile, adoptable, read_state, record
from kumadp.host.work_dir import STATE_FILE
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def received(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("kumadp").propagate = True


@pytest.fixture
def child() -> Iterator[ChildRecord]:
    """A living process, as it is noted."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        poll(lambda: (actual := identity_of(process.pid)) and actual.exe.endswith(("sleep", "coreutils")), what="sleep")
        created = record("envoy", process.pid, ("/bin/sleep", "60"), fifo="/f")
        assert created is not None
        yield created
        process.kill()


def write(folder: Path, body: object, mode: int = 0o600) -> None:
    path = folder / STATE_FILE
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    path.chmod(mode)


async def noted(folder: Path, *children: ChildRecord) -> None:
    file = StateFile(folder)
    file.note(children)
    await file.written()


async def test_what_is_noted_is_read_again_and_private(tmp_path: Path, child: ChildRecord) -> None:
    await noted(tmp_path, child)
    assert stat.S_IMODE((tmp_path / STATE_FILE).stat().st_mode) == 0o600
    actual = read_state(tmp_path)
    assert actual == SavedState(FORMAT, boot_id(), os.getpid(), start_time_of(os.getpid()) or 0, (child,))
    assert adoptable(actual) == [child]
    assert child.arguments not in {"", "/bin/sleep 60"}


async def test_changes_that_come_while_it_is_written_end_with_the_last(tmp_path: Path, child: ChildRecord) -> None:
    file = StateFile(tmp_path)
    for _ in range(20):
        file.note([child])
        await asyncio.sleep(0)
    file.note([])
    await file.written()
    actual = read_state(tmp_path)
    assert actual is not None
    assert actual.children == ()
    assert not tmp_path.joinpath(STATE_FILE + ".new").exists()
    file.remove()
    assert read_state(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "alive"),
    [
        ({}, True),
        ({"exe": "/usr/bin/python3"}, True),
        ({"program": "/none"}, True),
        ({"exe": "/none", "program": "/none"}, False),
        ({"start_time": 1}, False),
        ({"uid": 12345}, False),
        ({"pid": 1}, False),
    ],
)
def test_only_the_very_same_process_is_adopted(child: ChildRecord, change: dict[str, object], alive: bool) -> None:
    import msgspec

    assert msgspec.structs.replace(child, **change).is_alive() is alive


def test_a_process_that_has_ended_is_not_adopted() -> None:
    process = subprocess.Popen(["/bin/sleep", "60"])
    created = record("envoy", process.pid, ("/bin/sleep",))
    assert created is not None
    process.kill()
    poll(lambda: not created.is_alive(), what="its end")
    process.wait()
    assert not created.is_alive()
    assert record("envoy", process.pid, ("/bin/sleep",)) is None


def test_a_program_that_was_replaced_on_disk_is_still_the_same(tmp_path: Path) -> None:
    program = tmp_path / "envoy"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([str(program), "60"]) as process:
        poll(lambda: (actual := identity_of(process.pid)) and actual.exe == str(program), what="the program")
        created = record("envoy", process.pid, (str(program),))
        assert created is not None
        program.unlink()
        assert created.is_alive()
        process.kill()


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("{", "cannot be read"),
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ({"format": 99, "boot": "x", "pid": 1, "start_time": 1}, "has format 99"),
        ({"format": FORMAT, "boot": "x", "pid": "1", "start_time": 1}, "cannot be read"),
    ],
)
def test_a_bad_file_is_reported_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: object, output: str
) -> None:
    write(tmp_path, body)
    assert read_state(tmp_path) is None
    assert output in caplog.text


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_a_file_that_others_may_write_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
    write(tmp_path, {"format": FORMAT, "boot": boot_id(), "pid": 1, "start_time": 1}, mode)
    assert read_state(tmp_path) is None
    assert "not private" in caplog.text


def test_a_file_behind_a_link_or_of_another_boot_is_not_used(tmp_path: Path) -> None:
    write(tmp_path, {"format": FORMAT, "boot": boot_id(), "pid": 1, "start_time": 1})
    assert read_state(tmp_path) is not None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / STATE_FILE).symlink_to(tmp_path / STATE_FILE)
    assert read_state(tmp_path / "other") is None
    write(tmp_path, {"format": FORMAT, "boot": "another", "pid": 1, "start_time": 1})
    assert read_state(tmp_path) is None


async def test_a_file_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "write_json", full)
    for _ in range(3):
        await noted_by(file := StateFile(tmp_path))
        await noted_by(file)
    assert caplog.text.count("No space left on device") == 3


async def noted_by(file: StateFile) -> None:
    file.note([])
    await file.written()
