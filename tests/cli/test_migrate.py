"""`kumadp migrate`: of a process, a unit and a compose file, and installed into the tree of an image."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kumadp.cli.install import uninstall
from kumadp.cli.migrate import migrate
from kumadp.errors import CommandRefused, UsageError
from kumadp.host import systemd_units
from tests.support.command import invoke, place_program
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


DATAPLANE = """
type: Dataplane
mesh: default
name: web-1
networking:
  address: 127.0.0.1
  inbound:
    - port: 80
      servicePort: 8080
      serviceAddress: 127.0.0.1
      tags: {kuma.io/service: web}
"""
SECRET = "eyJhbGciOiJub3RoaW5nIn0.hush.hush"
UNIT = """
[Service]
User=daemon
Environment=KUMA_DATAPLANE_RUNTIME_TOKEN={secret} PATH=/nonexistent
ExecStart=/opt/kuma/kuma-dp run --ca-cert-file={folder}/ca.crt --dataplane-file={folder}/dp.yaml \\
  --dns-enabled=false --cp-address=https://me:hush-hush@cp:5678 --log-output-path=/var/log/kuma/dp.log
"""


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that units start, on a host whose units see the folder of the test."""
    place_program(tmp_path, monkeypatch)
    monkeypatch.setattr(systemd_units, "HIDDEN", ("/home",))


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    (tmp_path / "ca.crt").write_text("a CA")
    (tmp_path / "dp.yaml").write_text(DATAPLANE)
    path = tmp_path / "kuma-dp.service"
    path.write_text(UNIT.format(folder=tmp_path, secret=SECRET))
    return path


def test_a_unit_and_its_installation(tmp_path: Path, unit: Path) -> None:
    plan = json.loads(invoke(migrate, str(unit), "--format=json"))
    assert plan["in_the_way"] == 0, plan
    assert (plan["unit"], plan["user"]) == ("kumadp@web-1.service", "daemon")
    assert plan["switch_over"] == {
        "to kumadp": "systemctl stop kuma-dp.service && systemctl start kumadp@web-1.service",
        "back": "systemctl stop kumadp@web-1.service && systemctl start kuma-dp.service",
        "keep it": "systemctl disable kuma-dp.service && systemctl enable kumadp@web-1.service",
    }
    assert {port["purpose"] for port in plan["ports"]} == {"readiness", "inbound web"}
    root = tmp_path / "image"
    root.mkdir()
    shown = invoke(migrate, str(unit), "--apply", f"--root={root}")
    assert SECRET not in shown
    assert "hush" not in shown
    assert "0 in the way; options: " in shown
    settings = yaml.safe_load((root / "etc/kumadp/web-1.yaml").read_text())
    assert settings["dataplaneRuntime"] == {
        "resourcePath": f"{tmp_path}/dp.yaml",
        "tokenPath": "/etc/kumadp/web-1.token",
    }
    assert settings["controlPlane"]["url"] == "https://me:hush-hush@cp:5678"
    token = root / "etc/kumadp/web-1.token"
    assert token.read_text() == SECRET + "\n"
    assert token.stat().st_mode & 0o777 == 0o640
    drop_in = (root / "etc/systemd/system/kumadp@web-1.service.d/migrate.conf").read_text().splitlines()
    for line in ("Conflicts=kuma-dp.service", "User=daemon", "Group=daemon", "SupplementaryGroups=kumadp",
                 "AmbientCapabilities=CAP_NET_BIND_SERVICE", 'ReadWritePaths="/var/log/kuma"'):  # fmt: skip
        assert line in drop_in
    assert (root / "etc/systemd/system/kumadp@.service").exists()
    assert "wrote " not in invoke(migrate, str(unit), "--apply", f"--root={root}")
    removed = invoke(uninstall, "--systemd", f"--root={root}")
    assert "removed /etc/systemd/system/kumadp@web-1.service.d/migrate.conf" in removed


def test_nothing_is_installed_with_something_in_the_way(tmp_path: Path, unit: Path) -> None:
    (tmp_path / "dp.yaml").write_text("type: Dataplan\n")
    root = tmp_path / "image"
    root.mkdir()
    with pytest.raises(CommandRefused, match="--apply: 1 in the way"):
        invoke(migrate, str(unit), "--apply", f"--root={root}")
    assert list(root.iterdir()) == []


def test_another_user_is_missing_files(tmp_path: Path, unit: Path) -> None:
    unit.write_text(unit.read_text().replace("User=daemon", "User=root"))
    (tmp_path / "ca.crt").chmod(0o600)
    plan = json.loads(invoke(migrate, str(unit), "--format=json"))
    assert plan["user"] == "kumadp"
    assert f"user kumadp cannot read {tmp_path}/ca.crt: chgrp kumadp" in plan["problems"][0]


def test_redirected_traffic_needs_the_same_user(tmp_path: Path, unit: Path) -> None:
    redirecting = DATAPLANE + "  transparentProxying: {redirectPortInbound: 15006, redirectPortOutbound: 15001}\n"
    (tmp_path / "dp.yaml").write_text(redirecting)
    assert "install transparent proxying" not in invoke(migrate, str(unit))
    unit.write_text(unit.read_text().replace("User=daemon", "User=root"))
    assert "install transparent proxying for user kumadp" in invoke(migrate, str(unit))


@pytest.fixture
def process(tmp_path: Path, unit: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program with the name and the command line of kuma-dp, which does nothing."""
    program = tmp_path / "bin/kuma-dp"
    program.parent.mkdir()
    shutil.copy(shutil.which("sh") or "/bin/sh", program)
    # A shell reads a script of its first argument.
    (tmp_path / "run").write_text("read line\n")
    command = [str(program), "run", "--dataplane-file=dp.yaml", f"--dataplane-token={SECRET}", "--ca-cert-file=ca.crt"]
    child = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, env={"KUMA_DNS_ENABLED": "false"})
    with child:
        yield child
        child.kill()


def test_a_process(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    def planned() -> Any:
        try:
            return json.loads(invoke(migrate, f"--pid={process.pid}", "--format=json"))
        except CommandRefused:
            # It is not the other program yet.
            return None

    plan = poll(planned, what="the program to run")
    assert plan["kuma_dp"]["pids"][0] == process.pid
    assert SECRET not in json.dumps(plan)
    settings = yaml.safe_load(plan["files"][0]["text"])
    assert settings["dataplaneRuntime"]["resourcePath"] == f"{tmp_path}/dp.yaml"
    assert settings["dns"] == {"enabled": False}
    assert str(process.pid) in plan["switch_over"]["to kumadp"]


def test_what_cannot_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(CommandRefused, match="is no kuma-dp"):
        invoke(migrate, "--pid=1")
    with pytest.raises(CommandRefused, match="no process has the pid 4194303"):
        invoke(migrate, "--pid=4194303")
    with pytest.raises(UsageError, match="not both"):
        invoke(migrate, "kuma-dp.service", "--pid=1")


def test_a_compose_file(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    service = {
        "image": "kuma-dp:2.14.3",
        "command": "run --name=x",
        "environment": {"KUMA_DATAPLANE_RUNTIME_TOKEN": SECRET},
    }
    file.write_text(yaml.safe_dump({"services": {"dp": service}}))
    shown = invoke(migrate, str(file))
    assert SECRET not in shown
    assert "-> service dp with the image of kumadp" in shown
    with pytest.raises(CommandRefused, match="a compose file is changed by hand"):
        invoke(migrate, str(file), "--apply")
