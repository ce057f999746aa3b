"""`kumadp install` and `kumadp uninstall` into the tree of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner

from kumadp.cli.install import _warn, install, uninstall
from kumadp.errors import CommandRefused, UsageError
from kumadp.host.systemd_units import shipped
from tests.support.command import invoke, place_program

if TYPE_CHECKING:
    from pathlib import Path

    import click


def run(command: click.Command, *arguments: str) -> list[str]:
    return [line for line in invoke(command, *arguments).splitlines() if not line.startswith("warning: ")]


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that the units start."""
    return place_program(tmp_path, monkeypatch)


def test_install_update_and_uninstall(tmp_path: Path, program: Path) -> None:
    root = tmp_path / "image"
    root.mkdir()
    (tmp_path / "web.yaml").write_text("type: Dataplane\n")
    options = ("--systemd", f"--root={root}", "--name=web")
    given = ("--cp-address=https://cp:5678", f"--dataplane-file={tmp_path / 'web.yaml'}")
    lines = run(install, *options, *given)
    assert lines[-1] == "next: systemctl enable --now kumadp@web.service"
    assert "wrote /etc/kumadp/web.yaml" in lines
    settings = yaml.safe_load((root / "etc/kumadp/web.yaml").read_text())
    assert settings == {
        "controlPlane": {"url": "https://cp:5678"},
        "dataplaneRuntime": {"resourcePath": str(tmp_path / "web.yaml")},
    }
    unit = next(line.removeprefix("wrote /") for line in lines if line.endswith("kumadp@.service"))
    assert str(program) in (root / unit).read_text()
    assert {line.split()[0] for line in run(install, *options, *given)[:-1]} == {"unchanged"}
    assert "kept /etc/kumadp/web.yaml, which differs from what would be written now" in run(install, *options)
    assert {line.split()[0] for line in run(uninstall, "--systemd", f"--root={root}")} == {"removed"}
    assert (root / "etc/kumadp/web.yaml").exists()
    assert run(uninstall, *options, "--purge") == ["removed /etc/kumadp/web.yaml"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "image"
    root.mkdir()
    lines = run(install, "--systemd", f"--root={root}", "--dry-run")
    assert {line.split(maxsplit=2)[1] for line in lines[:-1]} == {"write"}
    assert list(root.iterdir()) == []
    lines = run(uninstall, "--systemd", f"--root={root}", "--dry-run")
    assert all(line.startswith("would remove /") for line in lines)


def test_invalid_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--systemd is required"):
        run(install, f"--root={tmp_path}")
    with pytest.raises(UsageError, match="'a/b' cannot be part of a unit's name"):
        run(install, "--systemd", f"--root={tmp_path}", "--name=a/b")
    with pytest.raises(CommandRefused, match=r"/none/web\.yaml: no such file"):
        run(install, "--systemd", f"--root={tmp_path}", "--dataplane-file=/none/web.yaml")
    monkeypatch.setattr("sys.argv", ["/none/kumadp"])
    with pytest.raises(CommandRefused, match="/none/kumadp is not a program that a unit could start"):
        run(install, "--systemd", f"--root={tmp_path}")


def test_a_file_that_the_unit_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "token"
    secret.write_text("x")
    _warn(str(secret))
    assert capsys.readouterr().err.startswith(f"warning: the unit cannot see {secret}: move it")
    _warn("https://cp:5678")
    _warn("")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("base", "folder", "hidden"),
    [
        ("/usr", "/home/me/kumadp/.venv/bin", "/home/me/kumadp/.venv/bin/kumadp"),
        ("/root/.pyenv/versions/3.12.1", "/opt/kumadp/bin", "/root/.pyenv/versions/3.12.1"),
        ("/usr", "/opt/kumadp/bin", ""),
    ],
)
def test_a_program_that_the_unit_cannot_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, folder: str, hidden: str
) -> None:
    monkeypatch.setattr("kumadp.cli.install._program", lambda: f"{folder}/kumadp")
    monkeypatch.setattr("sys.base_prefix", base)
    result = CliRunner().invoke(install, ["--systemd", f"--root={tmp_path}", "--dry-run"])
    warnings = [line for line in result.output.splitlines() if line.startswith("warning: ")]
    assert [line.split(": ")[1] for line in warnings] == ([f"the unit cannot see {hidden}"] if hidden else [])


def test_units_of_the_package_are_not_hidden_by_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kumadp.cli.install._program", lambda: "/usr/bin/kumadp")
    options = ("--systemd", f"--root={tmp_path}", "--name=web")
    files = run(install, *options, "--dry-run")
    units = [line.removeprefix("would write ") for line in files if ".service" in line][:2]
    (tmp_path / "lib/systemd/system").mkdir(parents=True)
    for path in units:
        name = path.rpartition("/")[2]
        (tmp_path / "lib/systemd/system" / name).write_bytes(shipped("systemd", name))
    lines = run(install, *options)
    assert {"unchanged /lib/systemd/system/kumadp.service", "unchanged /lib/systemd/system/kumadp@.service"} < set(
        lines
    )
    assert not (tmp_path / "etc/systemd").exists()
    # With another program the unit has to be another one.
    monkeypatch.setattr("kumadp.cli.install._program", lambda: "/opt/kumadp/bin/kumadp")
    assert "wrote /etc/systemd/system/kumadp@.service" in run(install, *options)
