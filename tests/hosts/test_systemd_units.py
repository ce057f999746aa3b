"""The shipped units, as systemd itself reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.needs import missing

FOLDER = Path(__file__).resolve().parent.parent.parent / "systemd"
UNITS = ("kumadp.service", "kumadp@.service")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        missing("no systemd-analyze here")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)


def verified(unit: Path) -> subprocess.CompletedProcess[str]:
    return analyze("verify", "--recursive-errors=no", "--man=no", str(unit))


def copied(tmp_path: Path, name: str, more: str = "") -> Path:
    unit = tmp_path / name
    unit.write_text((FOLDER / name).read_text().replace("/usr/bin/kumadp", "/bin/true") + more)
    return unit


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong(tmp_path: Path, name: str) -> None:
    done = verified(copied(tmp_path, name))
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_key_would_be_reported(tmp_path: Path) -> None:
    done = verified(copied(tmp_path, "kumadp.service", "[Service]\nRestartSecs=1\n"))
    assert done.returncode == 1
    assert "Unknown key" in done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_exposure_is_at_most_one_and_a_half(name: str) -> None:
    done = analyze("security", "--offline=true", "--threshold=15", str(FOLDER / name))
    assert done.returncode == 0, done.stdout


def test_the_two_differ_in_the_name_alone() -> None:
    single, template = ((FOLDER / name).read_text().splitlines() for name in UNITS)
    named = [line.replace("%i", "kumadp").replace("mesh: kumadp", "mesh") for line in template]
    assert named == single


@pytest.mark.parametrize("name", UNITS)
def test_exit_codes_that_a_restart_cannot_fix_prevent_it(name: str) -> None:
    from kumadp.errors import ExitCode

    match = re.search(r"^RestartPreventExitStatus=(.*)$", (FOLDER / name).read_text(), re.MULTILINE)
    assert match is not None
    expected = {
        ExitCode.USAGE,
        ExitCode.RESOURCE,
        ExitCode.BINARY_NOT_FOUND,
        ExitCode.BOOTSTRAP,
        ExitCode.CONTROL_PLANE_REFUSED,
        ExitCode.SETTINGS,
    }
    assert {ExitCode(int(code)) for code in match[1].split()} == expected


@pytest.mark.parametrize("name", UNITS)
def test_documentation_is_what_the_package_installs(name: str) -> None:
    paths = re.findall(r"file:/usr/share/doc/kumadp/(\S+)", (FOLDER / name).read_text())
    installed = re.search(r"^for file in (.*); do$", (FOLDER.parent / ".ci" / "build-deb").read_text(), re.MULTILINE)
    assert installed is not None
    assert paths
    assert set(paths) <= set(installed[1].split())
    assert all((FOLDER.parent / path).is_file() for path in installed[1].split())
