"""`kumadp doctor` as it is typed: before a start, with each thing wrong, and beside a running data plane."""

from __future__ import annotations

import json
import os
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.command import kumadp
from tests.support.daemon import Ports, folders, run_kumadp, workload, write_mesh
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.readmes import output_of
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane, bootstrap_answer, static_bootstrap

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


pytestmark = pytest.mark.process


def findings(
    tmp_path: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Exit code, and findings by check."""
    (tmp_path / "run").mkdir(exist_ok=True)
    done = kumadp(
        *("doctor", "--output=json", *arguments),
        environment={
            "XDG_RUNTIME_DIR": str(tmp_path / "run"),
            "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": str(need_envoy()),
            "KUMA_DNS_ENABLED": "false",
            "KUMA_READINESS_PORT": str(free_port()),
            **(environment or {}),
        },
        deadline=90,
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is (done.returncode == 0)
    by_check: dict[str, list[dict[str, Any]]] = {}
    for finding in report["findings"]:
        by_check.setdefault(finding["check"], []).append(finding)
    return done.returncode, by_check


def states(by_check: dict[str, list[dict[str, Any]]], *names: str) -> list[str]:
    return [finding["state"] for name in names for finding in by_check[name]]


def standalone(tmp_path: Path, ports: Ports, app: int = 1) -> tuple[str, ...]:
    folder = write_mesh(tmp_path / "mesh", ports, app, 2)
    return (f"--standalone={folder}", "--name=web", f"--work-dir={tmp_path / 'work'}", f"--state-dir={tmp_path / 's'}")


def test_before_a_start(tmp_path: Path) -> None:
    ports = Ports.take()
    environment = {"KUMA_READINESS_PORT": str(ports.readiness)}
    code, checks = findings(tmp_path, *standalone(tmp_path, ports), environment=environment)
    assert states(checks, "settings", "envoy", "coredns", "bootstrap", "ports", "files") == ["ok"] * 6
    assert states(checks, "control plane", "token", "running") == ["skipped"] * 3
    assert code == 0
    assert not (tmp_path / "work").exists(), "nothing is changed"
    done = kumadp("doctor", "--standalone=/none")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith("failed   settings       ")
    assert "skipped  envoy          the settings failed" in done.stdout


def test_ports_that_are_taken_name_their_holder(tmp_path: Path) -> None:
    ports = Ports.take()
    with socket.create_server(("127.0.0.1", ports.inbound)):
        code, checks = findings(tmp_path, *standalone(tmp_path, ports))
    assert code == 1
    assert f"(pid {os.getpid()})" in checks["ports"][0]["text"]


def test_files_that_are_not_programs(tmp_path: Path) -> None:
    ports = Ports.take()
    more = ("--binary-path=/none/envoy", "--dns-enabled=true", "--dns-coredns-path=/bin/true")
    code, checks = findings(tmp_path, *standalone(tmp_path, ports), *more)
    assert code == 1
    assert states(checks, "envoy", "coredns", "bootstrap") == ["failed"] * 3
    assert "does not print its version" in checks["coredns"][0]["text"]


def plane_flags(tmp_path: Path, plane: ScriptedControlPlane) -> tuple[str, ...]:
    ca = plane.write_ca(tmp_path / "ca.crt")
    return (f"--cp-address={plane.url}", f"--ca-cert-file={ca}", "--name=web-1", "--mesh=default")


def test_a_bootstrap_from_a_control_plane(tmp_path: Path) -> None:
    ports = Ports.take()
    good, bad, exposed = (static_bootstrap(ports, 1) for _ in range(3))
    bad["staticResources"]["clusters"][0]["connectTimeout"] = "-1s"
    exposed["admin"]["address"]["socketAddress"]["address"] = "0.0.0.0"
    for bootstrap, more, state, text in (
        (good, (), "ok", "Envoy accepts it, with its admin on 127.0.0.1:"),
        (bad, (), "failed", "Envoy refuses the configuration: Invalid duration"),
        (exposed, ("--strict-admin",), "failed", "is not loopback"),
    ):
        with ScriptedControlPlane(bootstrap_answer(bootstrap)) as plane:
            _, checks = findings(tmp_path, *plane_flags(tmp_path, plane), *more)
        assert checks["bootstrap"][0]["state"] == state, checks
        assert text in checks["bootstrap"][0]["text"]
    with ScriptedControlPlane(Answer(403, b"no such token")) as plane:
        _, checks = findings(tmp_path, *plane_flags(tmp_path, plane))
    assert "refused" in checks["bootstrap"][0]["text"]
    assert checks["control plane"][0]["state"] == "ok"


def test_beside_a_running_data_plane(tmp_path: Path) -> None:
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        folder = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        with run_kumadp(tmp_path, ports, f"--standalone={folder}", "--name=web", "--drain-time=1s") as daemon:
            daemon.wait_ready()
            runtime = {"XDG_RUNTIME_DIR": daemon.environment["XDG_RUNTIME_DIR"]}
            code, checks = findings(tmp_path, environment={**runtime, "KUMA_READINESS_PORT": "1"})
            assert code == 0, [
                finding for of_check in checks.values() for finding in of_check if finding["state"] == "failed"
            ]
            assert f"by the command line of pid {daemon.pid}" in checks["settings"][0]["text"]
            assert checks["running"][0]["text"] == f"web is READY, pid {daemon.pid}"
            assert checks["ports"][0]["text"].startswith("held by the running kumadp, or free: ")
            assert str(ports.readiness) in checks["ports"][0]["text"]
            daemon.kill_envoy()
            poll(lambda: daemon.output().count("-> READY") == 2, what="the next Envoy")
            poll(lambda: "crash record" in daemon.output(), what="the record")
            _, checks = findings(tmp_path, environment=runtime)
            assert "envoy was restarted 1 times" in checks["running"][0]["text"]
            assert "a crash record: " in checks["running"][1]["text"]


def test_beside_a_data_plane_that_is_not_ready(tmp_path: Path) -> None:
    ports = Ports.take()
    flags = (f"--cp-address=https://127.0.0.1:{free_port()}", "--name=web", "--mesh=default")
    with run_kumadp(tmp_path, ports, *flags) as daemon:
        poll(lambda: "waiting: bootstrap: " in daemon.output(), what="a reason")
        runtime = {"XDG_RUNTIME_DIR": daemon.environment["XDG_RUNTIME_DIR"]}
        code, checks = findings(tmp_path, environment={**runtime, "KUMA_READINESS_PORT": "1"})
    assert code == 1
    assert states(checks, "running", "control plane") == ["failed"] * 2
    assert checks["running"][0]["text"].startswith("not ready: bootstrap: control plane https://127.0.0.1:")


def test_an_envoy_left_by_a_dead_kumadp(tmp_path: Path) -> None:
    ports = Ports.take()
    work = folders(tmp_path)[1]
    with workload("web") as app:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        given = (f"--standalone={mesh}", "--name=web", "--on-parent-death=keep")
        with run_kumadp(tmp_path, ports, *given) as daemon:
            daemon.wait_ready()
            envoy = daemon.envoy()
            _, checks = findings(tmp_path, *given, f"--work-dir={work}")
            assert not [finding for finding in checks["leftovers"] if "envoy" in finding["text"]]
            daemon.process.kill()
            daemon.wait()
            _, checks = findings(tmp_path, *given, f"--work-dir={work}")
            (leftover,) = [finding for finding in checks["leftovers"] if "envoy" in finding["text"]]
            assert leftover["state"] == "warning"
            assert leftover["text"] == f"envoy (pid {envoy.pid}) left by a dead kumadp in {work}"
            assert kumadp("sweep", "--work-dir", work).returncode == 0


def test_readme_shows_its_checks_in_their_form(tmp_path: Path) -> None:
    shown = output_of("kumadp doctor --standalone=dataplane.yaml")
    ports = Ports.take()
    with socket.create_server(("127.0.0.1", ports.inbound)):
        done = kumadp("doctor", *standalone(tmp_path, ports), environment={"XDG_RUNTIME_DIR": str(tmp_path)})

    def labels(text: str) -> list[str]:
        return [line[9:24].strip() for line in text.splitlines()[:-2] if line[:8].strip() and line[9:24].strip()]

    assert labels(shown) == labels(done.stdout)
    # What depends on no host is shown word by word.
    fixed = ("settings", "control plane", "token", "files", "running")
    assert [line for line in shown.splitlines() if line[9:24].strip() in fixed] == [
        line for line in done.stdout.splitlines() if line[9:24].strip() in fixed
    ]
    line = r"((ok|warning|failed|skipped) +[a-z .1]+\S.*| +-> .+|\d+ failed, \d+ warnings?|)"
    assert all(re.fullmatch(line, text) for text in (*shown.splitlines(), *done.stdout.splitlines()))
