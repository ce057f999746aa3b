"""What the user names is used, or refused with its exit code and one line: nothing takes its place unasked."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import msgspec.structs
import pytest

from kumadp.cli.run import overruled
from kumadp.core.context import Context, Inputs
from kumadp.daemon.control_client import query_status
from kumadp.errors import WorkDirError
from kumadp.host.net.socket_paths import control_socket_path
from kumadp.host.work_dir import WorkDir
from kumadp.resources.load import load_resource
from kumadp.settings.model import Settings
from tests.support.daemon import Ports, get, run_kumadp, workload, write_mesh
from tests.support.poll import poll

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

COREDNS = """#!/bin/sh
[ "$1" = --version ] && exec echo CoreDNS-1.14.0
echo "$2:1 - Error during parsing: Unknown directive"
exit 1
"""
NO_ENVOY = {"KUMA_DATAPLANE_RUNTIME_BINARY_PATH": ""}
NAMED: dict[str, tuple[list[str], dict[str, str], int, str]] = {
    "an Envoy by its name": (["--binary-path=envoy-1.36"], NO_ENVOY, 72, "envoy-1.36 is not on PATH"),
    "an Envoy by variable": ([], {"KUMA_DATAPLANE_RUNTIME_BINARY_PATH": "envoy-1.36"}, 72, "envoy-1.36 is not on PATH"),
    "an Envoy by its path": (["--binary-path={}/file"], NO_ENVOY, 72, "file cannot be executed"),
    "a CoreDNS by its name": (["--dns-coredns-path=coredns-1.11"], {}, 72, "coredns-1.11 is not on PATH"),
    "a CoreDNS by its path": (["--dns-coredns-path={}/none"], {}, 72, "none is not there"),
    "CoreDNS": (["--dns-mode=coredns", "--dns-coredns-path=no-coredns"], {}, 72, "which --dns-mode=coredns needs"),
    "a Corefile template": (
        ["--dns-coredns-path={}/coredns", "--dns-coredns-config-template-path={}/file"],
        {},
        78,
        "file:1: Corefile template: rejected by CoreDNS: Error during parsing",
    ),
    "a Corefile template that is not there": (
        ["--dns-coredns-path={}/coredns", "--dns-coredns-config-template-path={}/none"],
        {},
        78,
        "none: No such file or directory",
    ),
    "a Corefile template that is wrong": (
        ["--dns-coredns-path={}/coredns", "--dns-coredns-config-template-path={}/wrong"],
        {},
        78,
        "{{ range }} is not supported",
    ),
    "a work directory": (["--work-dir={}/file"], {}, 71, "File exists"),
    "a work directory of systemd": (["--work-dir="], {"RUNTIME_DIRECTORY": "{}/file"}, 71, "File exists"),
    "a socket directory": ([], {"KUMA_DATAPLANE_RUNTIME_SOCKET_DIR": "{}/file"}, 71, "RUNTIME_SOCKET_DIR"),
    "a directory of the Corefile": (["--dns-server-config-dir={}/file"], {}, 71, "--dns-server-config-dir"),
    "a state directory": (["--state-dir={}/file"], {}, 71, "--state-dir"),
    "a state directory of systemd": (["--state-dir="], {"STATE_DIRECTORY": "{}/file"}, 71, "--state-dir"),
    "an address of probes": (["--virtual-probes-address=203.0.113.7"], {}, 71, "this address is not on this host"),
    "a name of probes": (
        ["--virtual-probes-address=a..b"],
        {},
        78,
        "--virtual-probes-address: a..b cannot be resolved",
    ),
    "a log file": (["--log-output-path={}/file/log"], {}, 78, "--log-output-path: "),
    "settings": (["--config={}/none"], {}, 78, "--config: "),
    "settings by variable": ([], {"KUMADP_CONFIG": "{}/none"}, 78, "--config: "),
}


@pytest.mark.parametrize("kind", NAMED)
def test_unusable_settings_are_rejected(tmp_path: Path, kind: str) -> None:
    arguments, variables, code, text = NAMED[kind]
    (tmp_path / "file").write_text("x {\n")
    (tmp_path / "wrong").write_text("{{ range }}")
    (tmp_path / "coredns").write_text(COREDNS)
    (tmp_path / "coredns").chmod(0o755)
    ports = Ports.take()
    mesh = write_mesh(tmp_path / "mesh", ports, 1, 2)
    filled = [argument.replace("{}", str(tmp_path)) for argument in arguments]
    environment = {name: value.replace("{}", str(tmp_path)) for name, value in variables.items()}
    standalone = ("--standalone", str(mesh), "--name", "web")
    with run_kumadp(tmp_path, ports, *standalone, *filled, environment=environment, dns=True) as daemon:
        assert daemon.wait() == code, daemon.output()
    lines = [line for line in daemon.output().splitlines() if " INFO " not in line]
    assert len(lines) == 1, lines
    assert text in lines[0]


def test_kumadp_variables_are_settings_and_reach_no_child(tmp_path: Path) -> None:
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        settings = tmp_path / "settings.yaml"
        settings.write_text("log: {level: debug}\nkumadp: {virtualProbes: {mode: on}}\n")
        variables = {
            "KUMADP_STANDALONE": str(mesh),
            "KUMADP_VIRTUAL_PROBES": "off",
            "KUMADP_CONFIG": str(settings),
            "KUMA_DATAPLANE_NAME": "web",
        }
        with run_kumadp(tmp_path, ports, environment=variables) as daemon:
            daemon.wait_ready()
            assert get(ports.inbound) == (200, "web")
            assert get(ports.probes, "/app/healthz")[0] == 0
            assert " DEBUG " in daemon.output()
            assert not [name for name in daemon.envoy().environ() if name.startswith("KUMADP_")]
            where = control_socket_path("web", daemon.environment)
            daemon.process.send_signal(signal.SIGUSR1)
            poll(lambda: reexecuted(where), what="the program that follows")
            daemon.wait_ready()
            assert get(ports.probes, "/app/healthz")[0] == 0


def reexecuted(where: Path) -> bool:
    try:
        return bool(query_status(where)["reexec"]["count"] == 1)
    except (OSError, KeyError):
        return False


def test_an_admin_port_in_the_dataplane_is_warned_about() -> None:
    resource = load_resource(
        """
type: Dataplane
mesh: default
name: web
networking:
  address: 127.0.0.1
  inbound: [{port: 1, servicePort: 2, tags: {kuma.io/service: web}}]
  admin: {port: 9901}
probes:
  port: 9001
  endpoints: [{inboundPort: 2, inboundPath: /a, path: /b}]
""",
        "dataplane.yaml",
    )
    settings = Settings()
    assert overruled(settings, resource) == overruled(settings, None) == []
    both = msgspec.structs.replace(settings, admin_port=9900, virtual_probes_port=9002)
    assert overruled(both, resource) == [
        "--admin-port 9900 is ignored: the Dataplane sets networking.admin.port 9901",
        "--virtual-probes-port 9002 is ignored: the Dataplane sets probes.port 9001",
    ]


def test_directories_for_keep_survive_the_run(tmp_path: Path) -> None:
    run = Context(Inputs(Settings(on_parent_death="keep"), None, {}))
    work = WorkDir(tmp_path, tmp_path, tmp_path, temporary=True)
    with pytest.raises(WorkDirError, match="--on-parent-death=keep: the work directory is temporary"):
        run.use_work_dir(work)
    run.use_work_dir(msgspec.structs.replace(work, temporary=False))
    assert run.keeps_children
    other = Context(Inputs(Settings(on_parent_death="auto"), None, {}))
    other.use_work_dir(work)
    assert not other.keeps_children
