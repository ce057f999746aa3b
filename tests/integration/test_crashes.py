"""Each kind of crash, for real: record, log, status and termination message name its kind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kumadp.daemon.control_client import query_status
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.command import kumadp
from tests.support.daemon import Daemon, Ports, get, run_kumadp, workload, write_mesh
from tests.support.memory import HOG, memory_cgroup
from tests.support.poll import poll
from tests.support.scripted_control_plane import ScriptedControlPlane, bootstrap_answer, static_bootstrap

pytestmark = pytest.mark.process

BUDGET = ("--envoy-restart-budget=1", "--drain-time=1s")


def mesh(tmp_path: Path, ports: Ports, app: int, backend: int) -> tuple[str, ...]:
    return ("--standalone", str(write_mesh(tmp_path / "mesh", ports, app, backend)), "--name=web", *BUDGET)


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((tmp_path / "state" / "crashes").glob("*.json"))]


def wait_record(tmp_path: Path) -> dict[str, Any]:
    return poll(lambda: (records(tmp_path) or [{}])[-1], what="a crash record")


def newest(daemon: Daemon) -> str:
    status = query_status(control_socket_path("web", daemon.environment))
    return str(status["crashes"]["newest"])


def test_killed_and_segv_and_the_end(tmp_path: Path) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        arguments = mesh(tmp_path, ports, app.port, backend.port)
        with run_kumadp(tmp_path, ports, *arguments, f"--termination-log={message}") as daemon:
            daemon.wait_ready()
            assert newest(daemon) == ""
            killed = daemon.kill_envoy()
            record = wait_record(tmp_path)
            assert (record["signal"], record["pid"], record["oom"], record["epoch"]) == (9, killed.pid, None, 0)
            assert any("starting main dispatch loop" in line for line in record["lines"])
            assert set(record["versions"]) >= {"kumadp", "envoy"}
            path = poll(lambda: newest(daemon), what="its name in the status")
            assert json.loads((tmp_path / path).read_text()) == record
            poll(lambda: f"crash record: {path}" in daemon.output(), what="its name in the log")
            poll(lambda: daemon.children().get("envoy"), what="the next Envoy")
            daemon.wait_ready()
            daemon.envoy().send_signal(signal.SIGSEGV)
            # The budget is spent.
            assert daemon.wait() == ExitCode.CHILD_FAILED
    assert [crash["signal"] for crash in records(tmp_path)] == [9, 11]
    text = message.read_text()
    assert text.startswith("exit code 70: envoy ended with signal 11 (SEGV) after ")
    assert records(tmp_path)[-1]["lines"][-1] in text


def test_a_bad_configuration(tmp_path: Path) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    ports = Ports.take()
    bootstrap = static_bootstrap(ports, 1)
    bootstrap["staticResources"]["clusters"][0]["connectTimeout"] = "-1s"
    with ScriptedControlPlane(bootstrap_answer(bootstrap)) as plane:
        plane.write_ca(tmp_path / "ca.crt")
        flags = (f"--cp-address={plane.url}", f"--ca-cert-file={tmp_path / 'ca.crt'}", "--name=web", "--mesh=default")
        with run_kumadp(tmp_path, ports, *flags, f"--termination-log={message}") as daemon:
            assert daemon.wait() == ExitCode.CHILD_FAILED
    (record,) = records(tmp_path)
    assert (record["exit_code"], record["signal"]) == (1, None)
    assert any("Expected positive duration" in line for line in record["lines"])
    assert "its configuration is wrong" in message.read_text()


def test_out_of_memory_is_distinguished_from_a_kill(tmp_path: Path) -> None:
    ports = Ports.take()
    with memory_cgroup(400) as cgroup, workload("web") as app, workload("backend") as backend:
        arguments = mesh(tmp_path, ports, app.port, backend.port)
        with run_kumadp(tmp_path, ports, *arguments, prefix=cgroup.prefix) as daemon:
            daemon.wait_ready()
            envoy = daemon.envoy()
            # The kernel takes this one first, and then the hog.
            Path(f"/proc/{envoy.pid}/oom_score_adj").write_text("1000")
            hog = subprocess.Popen([*cgroup.prefix, sys.executable, "-c", HOG], env=dict(os.environ))
            try:
                record = wait_record(tmp_path)
            finally:
                hog.kill()
                hog.wait()
            assert (record["signal"], record["pid"]) == (9, envoy.pid)
            assert record["oom"]["after"] > record["oom"]["before"]
            assert "out of memory" in record["story"]
            if os.access("/dev/kmsg", os.R_OK):
                assert any(f"Killed process {envoy.pid} (envoy)" in line for line in record["kernel"])
            status = query_status(control_socket_path("web", daemon.environment))
            assert "out of memory" in status["children"]["envoy"]["last_exit"]


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (("--drain-time=soon",), ExitCode.SETTINGS, "--drain-time"),
        (("--standalone=dataplane.yaml",), ExitCode.RESOURCE, "networking.address"),
    ],
)
def test_early_failures_are_in_the_termination_message(
    tmp_path: Path, flags: tuple[str, ...], code: ExitCode, text: str
) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    (tmp_path / "dataplane.yaml").write_text("type: Dataplane\nmesh: default\nname: web\nnetworking: {address: x y}\n")
    done = kumadp("run", f"--termination-log={message}", *flags, cwd=tmp_path)
    assert done.returncode == code
    first, *lines = message.read_text().splitlines()
    assert first == f"exit code {int(code)}:"
    assert any(text in line for line in lines)
    # All of the problems, as they are on standard error.
    assert lines == [line.removeprefix("Error: ") for line in done.stderr.splitlines()]


def test_a_death_that_kumadp_caused(tmp_path: Path) -> None:
    """A new epoch that does not come up is killed, and its output is recorded."""
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        arguments = mesh(tmp_path, ports, app.port, backend.port)
        with run_kumadp(tmp_path, ports, *arguments, "--reload-deadline=1ms") as daemon:
            daemon.wait_ready()
            daemon.process.send_signal(signal.SIGHUP)
            wait_record(tmp_path)
            # One that took the admin is followed by another, which fails in the same way.
            record = records(tmp_path)[0]
            assert (record["child"], record["signal"], record["epoch"]) == ("envoy", 9, 1)
            assert "from kumadp (as a new epoch it failed: " in record["story"]


def test_an_envoy_that_ends_by_itself(tmp_path: Path) -> None:
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        with run_kumadp(tmp_path, ports, *mesh(tmp_path, ports, app.port, backend.port)) as daemon:
            daemon.wait_ready()
            assert get(ports.admin, "/quitquitquit", method="POST")[0] == 200
            record = wait_record(tmp_path)
            assert (record["exit_code"], record["signal"]) == (0, None)
            assert record["story"].startswith("envoy ended with exit code 0 after ")
            poll(lambda: daemon.output().count("-> READY") == 2, what="the next Envoy")
            # A clean end, and that of an epoch that has drained, are none.
            daemon.process.send_signal(signal.SIGHUP)
            poll(lambda: "serves after" in daemon.output(), what="the reload")
            poll(lambda: list(daemon.children()) == ["envoy"], what="one Envoy", deadline=60)
        assert len(records(tmp_path)) == 1
