"""The private directory of a run: where it is, whom it belongs to, what becomes of it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import WorkDirError
from kumadp.host import work_dir as workdir
from kumadp.host.work_dir import LOCK_FILE, WorkDir, open_work_dir

if TYPE_CHECKING:
    from pathlib import Path


def opened(name: str = "web", work: str = "", sockets: str = "", dns: str = "", **environ: str) -> WorkDir:
    return open_work_dir(name, work, sockets, dns, environ)


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(workdir, "TEMPORARY", (folder,))
    return folder


def test_a_named_directory_is_created_private(tmp_path: Path) -> None:
    created = opened(work=str(tmp_path / "a" / "b"))
    assert created.path == created.sockets == created.dns == tmp_path / "a" / "b"
    assert stat.S_IMODE(created.path.stat().st_mode) == 0o700
    assert not created.temporary
    created.close()
    assert created.path.is_dir()


def test_the_setting_precedes_systemd_s_directory(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    for work, expected in (("", runtime), (str(tmp_path / "own"), tmp_path / "own")):
        created = opened(work=work, RUNTIME_DIRECTORY=f"{runtime}:{tmp_path / 'other'}")
        assert created.path == expected
        created.close()


def test_sockets_and_corefile_may_be_elsewhere(tmp_path: Path) -> None:
    created = opened(work=str(tmp_path / "w"), sockets=str(tmp_path / "s"), dns=str(tmp_path / "d"))
    assert (created.sockets, created.dns) == (tmp_path / "s", tmp_path / "d")
    created.close()


def test_where_nothing_is_named_and_run_is_not_ours_it_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    real = workdir.make_private

    def refuse_run(path: Path) -> Path:
        if path.is_relative_to("/run"):
            raise WorkDirError(f"{path}: Permission denied")
        return real(path)

    monkeypatch.setattr(workdir, "make_private", refuse_run)
    created = opened()
    assert created.temporary
    assert stat.S_IMODE(created.path.stat().st_mode) == 0o700
    created.close()
    assert not created.path.exists()


def test_a_living_run_keeps_its_directory_and_a_dead_one_does_not(tmp_path: Path) -> None:
    first = opened(work=str(tmp_path / "w"))
    with pytest.raises(WorkDirError, match="used by another kumadp"):
        opened(work=str(tmp_path / "w"))
    first.close()
    opened(work=str(tmp_path / "w")).close()


def test_what_dead_runs_left_is_removed_and_what_is_not_ours_stays(tmp_path: Path, temporary: Path) -> None:
    living = opened(work=str(temporary / "kumadp-living"))
    dead = temporary / "kumadp-dead"
    dead.mkdir()
    (dead / LOCK_FILE).touch()
    (dead / "bootstrap.yaml").touch()
    stranger = temporary / "kumadp-stranger"
    stranger.mkdir()
    link = temporary / "kumadp-link"
    link.symlink_to(tmp_path)
    removed: list[Path] = []
    open_work_dir("web", str(tmp_path / "w"), "", "", {}, before_removal=removed.append).close()
    assert not dead.exists()
    assert removed == [dead]
    assert living.path.is_dir()
    assert stranger.is_dir()
    assert link.is_symlink()
    living.close()


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(WorkDirError, match="chmod 700"):
        opened(work=str(folder))


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(WorkDirError, match=str(file)):
        opened(work=str(file))
    with pytest.raises(WorkDirError):
        opened(work=str(file / "below"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of somebody else's")
def test_a_directory_of_somebody_else_s_is_used_by_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    opened(work=str(folder)).close()
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(WorkDirError, match="belongs to another user"):
        opened(work=str(folder))


def test_it_goes_over_to_the_next_program_with_its_lock(tmp_path: Path) -> None:
    for created in (opened(), opened(work=str(tmp_path / "named"))):
        handed = created.handed()
        # As after execve(2): only what is handed over and the descriptor are there. Nobody took it in between.
        other = open_work_dir("other", str(tmp_path / "changed"), "", "", {}, handed)
        assert (other.path, other.temporary) == (created.path, created.temporary)
        with pytest.raises(WorkDirError, match="is running"):
            opened(work=str(created.path))
        other.close()
        assert created.path.exists() is not created.temporary
    assert not (tmp_path / "changed").exists()
