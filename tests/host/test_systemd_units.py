"""The files of an installation: shipped ones with our program, settings by name, written once or compared, removed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kumadp.errors import WorkDirError
from kumadp.host.systemd_units import (
    SETTINGS,
    UNITS,
    InstalledFile,
    base_files,
    differs,
    remove,
    settings_file,
    shipped,
    unit_of,
    write,
)


def test_names_of_units_and_settings() -> None:
    assert (unit_of(""), unit_of("web")) == ("kumadp.service", "kumadp@web.service")
    assert (settings_file(""), settings_file("web")) == (SETTINGS / "kumadp.yaml", SETTINGS / "web.yaml")


def test_units_run_the_given_program() -> None:
    files = {file.path.name: file for file in base_files("/opt/kumadp/bin/kumadp")}
    assert {*UNITS, "kumadp.conf", "kumadp.yaml.sample", "dataplane.yaml.sample"} == set(files)
    for name in UNITS:
        assert b"/opt/kumadp/bin/kumadp" in files[name].content
        assert b"/usr/bin/kumadp" not in files[name].content
    assert not any(file.operator_owned for file in files.values())


def test_a_file_that_does_not_ship_is_an_error() -> None:
    with pytest.raises(WorkDirError, match=r"systemd/none\.service is not there"):
        shipped("systemd", "none.service")


def test_files_are_written_compared_and_removed_below_the_root(tmp_path: Path) -> None:
    file = InstalledFile(Path("/etc/kumadp/web.yaml"), b"mesh: default\n", 0o640)
    on_disk = tmp_path / "etc" / "kumadp" / "web.yaml"
    assert differs(file, tmp_path) is None
    write(file, tmp_path)
    assert (on_disk.read_bytes(), stat.S_IMODE(on_disk.stat().st_mode)) == (file.content, 0o640)
    assert stat.S_IMODE(on_disk.parent.stat().st_mode) == 0o755
    assert differs(file, tmp_path) is False
    on_disk.write_bytes(b"mesh: other\n")
    assert differs(file, tmp_path) is True
    none = Path("/etc/kumadp/none.yaml")
    assert remove([file.path, none], tmp_path) == [file.path]
    assert not on_disk.exists()


def test_a_folder_of_units_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "etc").symlink_to("lib")
    write(InstalledFile(Path("/etc/x.service"), b"[Unit]\n"), tmp_path)
    assert (tmp_path / "lib" / "x.service").read_bytes() == b"[Unit]\n"


def test_a_failure_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(WorkDirError, match=r"etc/x\.service cannot be written"):
        write(InstalledFile(Path("/etc/x.service"), b""), tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(WorkDirError, match="folder cannot be removed"):
        remove([Path("/folder")], tmp_path)
