"""Records of unexpected deaths: what is in them, where they are, and which deaths need none."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.host.log.secrets import register
from kumadp.host.process_identity import start_time_of
from kumadp.process.child import Child, Command, RunningProcess
from kumadp.process.crash_records import (
    MAX_RECORDS,
    MESSAGE_SIZE,
    CrashRecord,
    CrashRecords,
    kernel_lines,
    termination_message,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

SECRET = "a-token-of-some-length"


class Site:
    """A folder of records and what writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.crashes = CrashRecords(lambda _make: folder, lambda _pid: {"epoch": 3, "versions": {"envoy": "1.40.0"}})

    async def run(self, script: str, *, stop: bool = False) -> None:
        command = Command(("/bin/sh", "-c", script), "envoy", {"PATH": os.defpath}, on_death=self.crashes.note)
        child = await Child.spawn(command)
        if stop:
            await child.stop(5)
        await child.wait()
        await self.crashes.close(0, "", "")

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in self.paths()]

    def paths(self) -> list[Path]:
        return sorted((self.folder / "crashes").glob("*"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize(
    ("script", "code", "number", "story"),
    [
        ("exit 3", 3, None, "envoy ended with exit code 3 after"),
        ("exit 0", 0, None, "envoy ended with exit code 0 after"),
        ("kill -9 $$", None, 9, "envoy ended with signal 9 (KILL) after"),
        ("kill -SEGV $$", None, 11, "envoy ended with signal 11 (SEGV) after"),
        ("kill -TERM $$", None, 15, "envoy ended with signal 15 (TERM) after"),
    ],
)
def test_each_cause(site: Site, script: str, code: int | None, number: int | None, story: str) -> None:
    register(SECRET)
    asyncio.run(site.run(f"echo first; echo token {SECRET}; echo last; {script}"))
    (record,) = site.records()
    assert (record["exit_code"], record["signal"], record["oom"]) == (code, number, None)
    assert record["story"].startswith(story)
    assert record["lines"] == ["first", "token ***", "last"]
    assert (record["child"], record["epoch"], record["versions"]) == ("envoy", 3, {"envoy": "1.40.0"})
    assert 0 <= record["uptime"] < 60
    (path,) = site.paths()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert site.crashes.status() == {"newest": str(path), "story": record["story"]}


def test_an_end_that_was_requested_is_no_crash(site: Site) -> None:
    asyncio.run(site.run("exec sleep 60", stop=True))
    assert site.paths() == []
    assert site.crashes.last is None


def test_a_child_that_is_killed_for_its_own_fault_is_a_crash(site: Site) -> None:
    async def condemned() -> None:
        command = Command(("/bin/sh", "-c", "exec sleep 60"), "envoy", {"PATH": os.defpath}, on_death=site.crashes.note)
        fault, none, reported = [await Child.spawn(command) for _ in range(3)]
        assert fault.kill_with_reason("it hung")
        assert none.kill_with_reason("")
        reported.send_signal(signal.SIGTERM)
        assert not reported.kill_with_reason("too late")
        for child in (fault, none, reported):
            await child.wait()
        await site.crashes.close(0, "", "")

    asyncio.run(condemned())
    (record,) = site.records()
    assert (record["signal"], record["oom"]) == (9, None)
    assert record["story"].startswith("envoy ended with signal 9 (KILL) from kumadp (it hung) after ")


@pytest.mark.parametrize(("planned", "records"), [(-1.0, 0), (60.0, 1)])
def test_an_end_of_an_adopted_one_that_was_planned_is_no_crash(site: Site, planned: float, records: int) -> None:
    async def adopted(pid: int) -> None:
        child = Child.adopt(RunningProcess("envoy", pid, start_time_of(pid) or 0, ours=False))
        child.watch_death(site.crashes.note)
        child.planned_from = time.monotonic() + planned
        os.kill(pid, signal.SIGKILL)
        await child.wait()
        await site.crashes.close(0, "", "")

    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        asyncio.run(adopted(process.pid))
    assert len(site.records()) == records


def test_the_last_lines_and_the_last_records_are_kept(site: Site) -> None:
    asyncio.run(site.run("i=0; while [ $i -lt 250 ]; do echo $i; i=$((i+1)); done; exit 1"))
    (record,) = site.records()
    assert record["lines"] == [str(number) for number in range(50, 250)]
    for _ in range(MAX_RECORDS):
        asyncio.run(site.run("exit 2"))
    assert len(site.paths()) == MAX_RECORDS
    assert {record["exit_code"] for record in site.records()} == {2}


def test_the_newest_of_an_earlier_run_is_found(site: Site) -> None:
    asyncio.run(site.run("exit 2"))
    later = Site(site.folder).crashes
    asyncio.run(later.find_newest())
    assert later.status() == {"newest": str(site.paths()[0]), "story": ""}


def test_what_cannot_be_written_costs_only_itself(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("kumadp").propagate = True
    (site.folder / "crashes").write_text("a file")
    asyncio.run(site.run("exit 2"))
    assert site.crashes.last is not None
    assert "no crash record of envoy: " in caplog.text


def crash(lines: list[str]) -> CrashRecord:
    return CrashRecord(1, 0.0, "", "envoy", 1, 0, "envoy ended", 1, None, None, 0.0, [], {}, lines)


def test_a_termination_message_has_the_reason_and_as_many_of_the_last_lines_as_kubernetes_takes() -> None:
    assert termination_message("exit code 70: why", None) == "exit code 70: why\n"
    message = termination_message("exit code 70: why", crash([f"{number} " + "ü" * 50 for number in range(200)]))
    assert message.startswith("exit code 70: why\nenvoy ended\n")
    assert message.splitlines()[-1].startswith("199 ")
    assert MESSAGE_SIZE - 110 < len(message.encode()) <= MESSAGE_SIZE + 1
    assert len(termination_message("x" * 9000, None).encode()) <= MESSAGE_SIZE + 1


def test_it_is_written_only_where_there_is_a_file_for_it(site: Site, tmp_path: Path) -> None:
    there, not_there = tmp_path / "there", tmp_path / "not-there"
    there.write_text("something longer than what comes")
    for path in (there, not_there):
        asyncio.run(site.crashes.close(70, "why", str(path)))
    assert there.read_text() == "exit code 70: why\n"
    assert not not_there.exists()
    asyncio.run(site.crashes.close(0, "stopped", str(there)))
    assert there.read_text() == "exit code 70: why\n", "a clean end has no story"


def test_the_kernel_s_log(tmp_path: Path) -> None:
    assert kernel_lines(1, str(tmp_path / "none")) == []
    file = tmp_path / "kmsg"
    file.write_text("6,1,2,-;Memory cgroup out of memory: Killed process 42 (envoy) total-vm:1kB\n")
    assert kernel_lines(42, str(file)) == ["Memory cgroup out of memory: Killed process 42 (envoy) total-vm:1kB"]
    assert kernel_lines(4, str(file)) == []
