"""A kuma-dp as a unit of systemd starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kumadp.errors import CommandRefused
from kumadp.migrate.unit_file import unit

UNIT = r"""
[Unit]
Description=Kuma data plane %i
[Service]
User=kuma-dp
WorkingDirectory=/srv/kuma
# a comment
Environment=KUMA_DATAPLANE_MESH=old "KUMA_READINESS_PORT=9910"
EnvironmentFile=-/nonexistent
EnvironmentFile={folder}/env
ExecStart=/usr/bin/other
ExecStart=
ExecStart=-/usr/local/bin/kuma-dp run \
  # in between
  --cp-address=https://${{CP}}:5678 \
  --dataplane-file="/etc/kuma/%i dp.yaml" $MORE
[Install]
ExecStart=/bin/false
"""


def write(folder: Path, text: str = UNIT, name: str = "kuma-dp@web.service") -> Path:
    path = folder / name
    path.write_text(text.format(folder=folder))
    (folder / "env").write_text('# variables\nCP=cp.example\nMORE="--drain-time 5s"\n; x\nKUMA_DATAPLANE_MESH=new\n')
    return path


def test_a_unit(tmp_path: Path) -> None:
    path = write(tmp_path)
    found = unit(str(path))
    assert found.arguments == (
        "run",
        "--cp-address=https://cp.example:5678",
        "--dataplane-file=/etc/kuma/web dp.yaml",
        "--drain-time",
        "5s",
    )
    assert found.environ["KUMA_DATAPLANE_MESH"] == "new"
    assert found.environ["KUMA_READINESS_PORT"] == "9910"
    assert (found.user, found.group, found.unit) == ("kuma-dp", "kuma-dp", "kuma-dp@web.service")
    assert (found.folder, found.program) == (Path("/srv/kuma"), "/usr/local/bin/kuma-dp")
    assert found.problems == ()


def test_drop_ins_come_after_the_unit(tmp_path: Path) -> None:
    path = write(tmp_path)
    folder = tmp_path / f"{path.name}.d"
    folder.mkdir()
    (folder / "20-b.conf").write_text("[Service]\nUser=b\n")
    (folder / "10-a.conf").write_text("[Service]\nUser=a\nEnvironmentFile=/nonexistent/needed\n")
    found = unit(str(path))
    assert found.user == "b"
    assert found.problems == ("EnvironmentFile /nonexistent/needed cannot be read: run this as root, where it is",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[Service]\n", "starts nothing"),
        ("[Service]\nExecStart=/usr/bin/nginx run\n", "does not start `kuma-dp run`: /usr/bin/nginx"),
        ("[Service]\nExecStart=/usr/bin/kuma-dp wait\n", "does not start `kuma-dp run`"),
        ("[Service]\nExecStart=/usr/bin/kuma-dp 'run\n", "ExecStart cannot be read"),
    ],
)
def test_what_is_no_unit_of_kuma_dp(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(CommandRefused, match=why):
        unit(str(write(tmp_path, text)))


def test_variables_that_cannot_be_read(tmp_path: Path) -> None:
    text = "[Service]\nEnvironment='A=b\nExecStart=/opt/kuma-dp run\n"
    assert unit(str(write(tmp_path, text))).problems == ("Environment= cannot be read: No closing quotation",)


def test_a_unit_that_is_not_there() -> None:
    with pytest.raises(CommandRefused, match="no such unit"):
        unit("no-kuma-dp-has-this-name.service")


def test_defaults_of_systemd(tmp_path: Path) -> None:
    found = unit(str(write(tmp_path, "[Service]\nExecStart=/opt/kuma-dp run\n", "kuma-dp.service")))
    assert (found.user, found.group, found.folder) == ("root", "root", Path("/"))
    found = unit(str(write(tmp_path, "[Service]\nDynamicUser=yes\nExecStart=/opt/kuma-dp run\n", "kuma-dp.service")))
    assert found.user == ""
