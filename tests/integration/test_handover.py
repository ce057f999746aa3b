"""Re-execution of a real program: same pid, its child still its own, its sockets never away, no byte lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.poll import poll
from tests.support.reexec_client import LOOPS, SECRET, Load, assert_no_line_is_lost, program

pytestmark = pytest.mark.process


@pytest.mark.parametrize("fate", ["kill", "keep"])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_same_process_continues_and_nothing_is_lost(loop: str, fate: str) -> None:
    with program(loop, fate=fate) as running:
        first = running.start()
        inode = (running.folder / "s").stat().st_ino
        after = running.again()
        with Load(running) as load:
            for _ in range(6):
                running.again()
                load.request_more(10)
        assert load.failed == []
        later = running.start()
        assert later["pid"] == first["pid"] == running.process.pid
        assert later["child"] == first["child"]
        assert psutil.Process(later["child"]).ppid() == running.process.pid
        assert (later["count"], later["failed"], later["unclaimed"]) == (7, "", [])
        assert later["secret"] == len(SECRET)
        assert later["work"] == first["work"]
        assert later["descriptors"] <= after["descriptors"]
        assert (running.folder / "s").stat().st_ino == inode
        (running.folder / "end").touch()
        ended = poll(lambda: state if (state := running.state())["ended"] else None, what="the child's end")
        assert ended["ended"] == "exit code 7"
        assert_no_line_is_lost(running)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_handover_is_readable_nowhere_and_inherited_by_no_child(loop: str) -> None:
    with program(loop, child="ls -l /proc/self/fd; sleep 60") as running:
        running.start()
        running.again()
        pid = running.process.pid
        process = Path(f"/proc/{pid}")
        state = running.again()
        for name in ("cmdline", "environ"):
            assert SECRET.encode() not in (process / name).read_bytes().replace(f"SECRET={SECRET}".encode(), b"")
        assert not [link for link in process.joinpath("fd").iterdir() if "memfd" in points_to(link)]
        for path in running.folder.rglob("*"):
            if path.is_file():
                assert SECRET not in path.read_text(errors="replace"), path
        assert inheritable(pid) <= {0, 1, 2}
        descriptors = list(Path(f"/proc/{state['child']}/fd").iterdir())
        assert len(descriptors) == 3


def inheritable(pid: int) -> set[int]:
    """Descriptors of a process that its children would get."""
    numbers = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            flags = re.findall(r"^flags:\s+(\d+)", entry.read_text(), re.MULTILINE)[0]
            if not int(flags, 8) & os.O_CLOEXEC:
                numbers.add(int(entry.name))
    return numbers


def points_to(path: Path) -> str:
    try:
        return str(path.readlink())
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize("loop", LOOPS)
def test_the_exit_code_of_a_child_that_ends_during_the_exec(loop: str) -> None:
    # It ends while the old program has its last moments or the new one its first: the next answer knows.
    with program(loop, child="while kill -0 $PPID; do [ -e {folder}/end ] && exit 3; done") as running:
        running.start()
        running.process.send_signal(signal.SIGUSR1)
        (running.folder / "end").touch()
        ended = poll(lambda: state if (state := running.state()).get("ended") else None, what="its end")
        assert ended["ended"] == "exit code 3"


@pytest.mark.parametrize("loop", LOOPS)
def test_no_signal_is_lost(loop: str) -> None:
    with program(loop, child="sleep 60") as running:
        count = running.start()["count"]
        for sent in itertools.count(1):
            if sent % 10 == 1:
                running.process.send_signal(signal.SIGUSR1)
            running.process.send_signal(signal.SIGUSR2)
            poll(lambda sent=sent: running.state().get("usr2") == sent, what=f"signal {sent}")  # type: ignore[misc]
            if running.start()["count"] >= count + 6:
                break


@pytest.mark.parametrize("fate", ["kill", "keep"])
@pytest.mark.parametrize("loop", LOOPS)
def test_parent_death_is_handled_as_before_the_exec(loop: str, fate: str) -> None:
    with program(loop, fate=fate, child="exec sleep 60") as running:
        running.start()
        running.again()
        child = psutil.Process(running.again()["child"])
        running.process.kill()
        running.process.wait()
        if fate == "kill":
            poll(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, what="its end")
        else:
            assert child.status() != psutil.STATUS_ZOMBIE
            child.kill()


@pytest.mark.parametrize("loop", LOOPS)
def test_if_the_exec_fails_the_old_program_continues(loop: str) -> None:
    with program(loop) as running:
        first = running.start()
        (running.folder / "refuse").touch()
        with Load(running) as load:
            for _ in range(5):
                running.process.send_signal(signal.SIGUSR1)
                load.request_more(10)
                failed = poll(lambda: state if (state := running.state())["failed"] else None, what="the failure")
        assert load.failed == []
        assert failed["failed"] == "/none/python cannot be run: No such file or directory"
        assert (failed["count"], failed["pid"]) == (0, first["pid"])
        assert inheritable(first["pid"]) <= {0, 1, 2}
        (running.folder / "refuse").unlink()
        assert running.again()["child"] == first["child"]
        (running.folder / "end").touch()
        poll(lambda: running.state()["ended"] == "exit code 7", what="the child's end")
        assert_no_line_is_lost(running)
