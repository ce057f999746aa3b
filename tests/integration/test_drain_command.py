"""`kumadp drain`: a data plane that drains and stays, and accepts requests again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.command import ROOT, kumadp
from tests.support.daemon import Daemon, Ports, closes_connection, get, run_kumadp, workload, write_mesh
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def daemon(tmp_path: Path, ports: Ports) -> Iterator[Daemon]:
    """A data plane whose outbound leads to its own inbound."""
    with workload("web") as app:
        folder = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        flags = ("--standalone", str(folder), "--name=web", "--drain-time=1s", "--min-drain-time=0s")
        with run_kumadp(tmp_path, ports, *flags) as started:
            started.wait_ready()
            yield started


def command(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return kumadp(*arguments, environment={"XDG_RUNTIME_DIR": daemon.environment["XDG_RUNTIME_DIR"]}, deadline=60)


def drain(daemon: Daemon, *arguments: str) -> str:
    done = command(daemon, "drain", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr + daemon.output()
    return done.stdout


def status(daemon: Daemon) -> dict[str, object]:
    found: dict[str, object] = json.loads(command(daemon, "status", "-o", "json").stdout)
    return found


def test_inbound_drains_and_is_accepted_again(daemon: Daemon, ports: Ports) -> None:
    assert get(ports.inbound) == (200, "web")
    envoy = daemon.envoy().pid
    with socket.create_connection(("127.0.0.1", ports.inbound)) as connection:
        poll(lambda: "cx_active: 1" in get(ports.admin, "/stats?filter=listener.*cx_active")[1], what="a connection")
        arguments = ["drain", "--wait", "--timeout=60s"]
        # It runs while the connection is held.
        waiting = subprocess.Popen(
            [sys.executable, "-m", "tests.support.isolated_kumadp", *arguments],
            cwd=ROOT,
            env={"XDG_RUNTIME_DIR": daemon.environment["XDG_RUNTIME_DIR"], "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert waiting.stdout is not None
        lines = [waiting.stdout.readline() for _ in range(2)]
        assert lines[0].startswith("web: inbound drains")
        assert lines[1] == "web: 1 inbound connection left\n"
        connection.shutdown(socket.SHUT_RDWR)
    with waiting:
        assert waiting.stdout.read() == "web: no inbound connections left\n"
    assert waiting.returncode == 0
    # Envoy serves what comes nevertheless, and has the client disconnect.
    poll(lambda: closes_connection(ports.inbound), what="an inbound that drains")
    assert not closes_connection(ports.outbound)
    assert status(daemon)["drain"]
    refused = command(daemon, "drain", "--all")
    assert (refused.returncode, refused.stdout) == (79, "")
    assert "kumadp drain --undo" in refused.stderr
    refused = command(daemon, "reload")
    assert refused.returncode == 79
    assert "inbound is drained" in refused.stderr
    assert "a new Envoy" in drain(daemon, "--undo")
    assert not closes_connection(ports.inbound)
    assert daemon.envoy().pid != envoy
    assert "drain" not in status(daemon)
    assert command(daemon, "drain", "--undo").returncode == 79


def test_all_drains_and_is_served_again(daemon: Daemon, ports: Ports) -> None:
    drain(daemon, "--all")
    assert get(ports.readiness, "/ready")[0] == 503
    assert get(ports.inbound) == (200, "web")
    assert "not ready" in command(daemon, "status").stdout
    assert "no inbound and no outbound connections left" in drain(daemon, "--all", "--wait")
    drain(daemon, "--undo")
    poll(lambda: get(ports.readiness, "/ready") == (200, "READY"), what="READY")
    assert get(ports.admin, "/ready")[0] == 200


def test_an_envoy_that_follows_drains_too(daemon: Daemon, ports: Ports) -> None:
    drain(daemon, "--all")
    daemon.kill_envoy()
    poll(lambda: get(ports.admin, "/ready")[0] == 503 and get(ports.inbound)[0] == 200, what="a drained Envoy")
    assert get(ports.readiness, "/ready")[0] == 503
    daemon.process.send_signal(signal.SIGUSR1)
    poll(lambda: (command(daemon, "status", "-o", "json").stdout or "{}").find('"count": 1') >= 0, what="a new kumadp")
    poll(lambda: '"RUNNING"' in command(daemon, "status", "-o", "json").stdout, what="an adoption to its end")
    assert get(ports.readiness, "/ready")[0] == 503
    assert status(daemon)["drain"]
    drain(daemon, "--undo")
    poll(lambda: get(ports.readiness, "/ready") == (200, "READY"), what="READY")


def test_a_kumadp_that_adopts_envoy_continues(tmp_path: Path, ports: Ports) -> None:
    with workload("web") as app:
        folder = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        flags = ("--standalone", str(folder), "--name=web", "--drain-time=1s", "--on-parent-death=keep")
        with run_kumadp(tmp_path, ports, *flags) as killed:
            killed.wait_ready()
            envoy = killed.envoy().pid
            drain(killed, "--all")
            state = tmp_path / "work" / "state.json"
            poll(lambda: '"scope":"all"' in state.read_text().replace(" ", ""), what="the drain on disk")
            killed.process.kill()
            killed.process.wait()
        with run_kumadp(tmp_path, ports, *flags) as daemon:
            poll(lambda: "drain" in (command(daemon, "status", "-o", "json").stdout or ""), what="an adoption")
            # Not a child of this one.
            poll(lambda: f'"pid": {envoy}' in command(daemon, "status", "-o", "json").stdout, what="the same Envoy")
            poll(lambda: '"RUNNING"' in command(daemon, "status", "-o", "json").stdout, what="an adoption to its end")
            assert get(ports.readiness, "/ready")[0] == 503
            drain(daemon, "--undo")
            poll(lambda: get(ports.readiness, "/ready") == (200, "READY"), what="READY")


def test_a_signal_is_undone_too(daemon: Daemon, ports: Ports) -> None:
    daemon.process.send_signal(signal.SIGUSR2)
    poll(lambda: closes_connection(ports.inbound), what="an inbound that drains")
    drain(daemon, "--undo")
    assert not closes_connection(ports.inbound)
    # The next drain is not taken for a repetition.
    daemon.process.send_signal(signal.SIGUSR2)
    poll(lambda: closes_connection(ports.inbound), what="an inbound that drains again")


def test_connections_that_stay_are_a_failure(daemon: Daemon, ports: Ports) -> None:
    with socket.create_connection(("127.0.0.1", ports.inbound)):
        poll(lambda: "cx_active: 1" in get(ports.admin, "/stats?filter=listener.*cx_active")[1], what="a connection")
        done = command(daemon, "drain", "--wait", "--timeout=1s")
    assert done.returncode == 75
    assert "1 inbound connection left after 1 s" in done.stderr


def test_undo_takes_no_other_option(daemon: Daemon) -> None:
    assert command(daemon, "drain", "--undo", "--wait").returncode == 64
