"""The kernel's count of out-of-memory kills in our cgroup, of either version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.host.cgroup import OomKills, oom_file

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/system.slice/kumadp.service\n", "system.slice/kumadp.service/memory.events"),
        ("0::/\n", "memory.events"),
        ("0::/kubepods/pod1\n", "memory.events"),
        ("1:name=systemd:/a\n4:memory,hugetlb:/a/b\n0::/\n", "memory/a/b/memory.oom_control"),
        ("4:memory:/docker/0123\n", "memory/memory.oom_control"),
        ("4:memory:/a\n0::/x\n", "unified/x/memory.events"),
    ],
)
def test_the_file_that_counts(tmp_path: Path, own: str, file: str) -> None:
    (tmp_path / "own").write_text(own)
    counting = tmp_path / "cgroup" / file
    counting.parent.mkdir(parents=True)
    counting.write_text("oom_kill 0\n")
    assert oom_file(tmp_path / "own", tmp_path / "cgroup") == counting


def test_nothing_counts_where_there_is_no_cgroup(tmp_path: Path) -> None:
    assert oom_file(tmp_path / "none", tmp_path) is None
    (tmp_path / "own").write_text("broken\n3:cpu:/\n")
    assert oom_file(tmp_path / "own", tmp_path) is None
    assert OomKills(None).new_kills() is None


def test_a_kill_is_reported_once(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text("low 0\nhigh 3\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n")
    kills = OomKills(file)
    assert kills.new_kills() is None
    file.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert kills.new_kills() == (1, 3)
    assert kills.new_kills() is None
    file.write_text("nothing of it\n")
    assert kills.new_kills() is None
    file.unlink()
    assert kills.count() is None
