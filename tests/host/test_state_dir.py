"""The state directory: where it is looked for, and what is not taken."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import WorkDirError
from kumadp.host.state_dir import open_state_dir

if TYPE_CHECKING:
    from pathlib import Path


def test_the_setting_goes_first(tmp_path: Path) -> None:
    expected = tmp_path / "a" / "b"
    assert open_state_dir("web", str(expected), {"STATE_DIRECTORY": str(tmp_path / "c")}, tmp_path) == expected
    assert stat.S_IMODE(expected.stat().st_mode) == 0o700
    assert not (tmp_path / "c").exists()


def test_systemd_s_precedes_our_own(tmp_path: Path) -> None:
    given = tmp_path / "given"
    assert open_state_dir("web", "", {"STATE_DIRECTORY": f"{given}:{tmp_path / 'other'}"}, tmp_path) == given


def test_our_own_is_called_as_the_dataplane(tmp_path: Path) -> None:
    assert open_state_dir("web", "", {}, tmp_path / "kumadp") == tmp_path / "kumadp" / "web"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_a_name_that_is_no_file_name_has_none(tmp_path: Path, name: str) -> None:
    assert open_state_dir(name, "", {}, tmp_path / "kumadp") is None
    assert not (tmp_path / "kumadp").exists()


def test_a_directory_that_others_can_write_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web").chmod(0o777)
    assert open_state_dir("web", "", {}, tmp_path) is None
    with pytest.raises(WorkDirError, match="can be written by others"):
        open_state_dir("web", str(tmp_path / "web"), {})


def test_a_directory_that_cannot_be_created_is_none(tmp_path: Path) -> None:
    (tmp_path / "web").write_text("a file")
    assert open_state_dir("web", "", {}, tmp_path) is None
    for setting, environ in ((str(tmp_path / "web" / "x"), {}), ("", {"STATE_DIRECTORY": str(tmp_path / "web" / "x")})):
        with pytest.raises(WorkDirError, match="--state-dir"):
            open_state_dir("web", setting, environ, tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir(mode=0o700)
    os.chown(tmp_path / "web", 12345, -1)
    assert open_state_dir("web", "", {}, tmp_path) is None
