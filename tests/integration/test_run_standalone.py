"""`kumadp run --standalone` with a real Envoy, as a user runs it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp.errors import ExitCode
from tests.support.daemon import Ports, Workload, closes_connection, get, is_listening, run_kumadp, workload, write_mesh
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def backend() -> Iterator[Workload]:
    with workload("backend") as server:
        yield server


def mesh_of(tmp_path: Path, ports: Ports, app: Workload, backend: Workload) -> tuple[str, ...]:
    folder = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
    return ("--standalone", str(folder), "--name", "web", "--drain-time", "1s")


def test_inbound_outbound_probes_readiness_and_admin(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    with run_kumadp(tmp_path, ports, *mesh_of(tmp_path, ports, app, backend)) as daemon:
        daemon.wait_ready()
        assert get(ports.inbound) == (200, "web")
        assert get(ports.outbound) == (200, "backend")
        assert get(ports.probes, "/app/healthz") == (200, "ok")
        assert get(ports.probes, "/healthz")[0] == 404
        assert get(ports.admin, "/ready") == (200, "LIVE\n")
        assert get(ports.readiness, "/other")[0] == 404
        listening = {(c.laddr.ip, c.laddr.port) for c in daemon.envoy().net_connections("inet") if c.status == "LISTEN"}
        assert {host for host, port in listening if port == ports.admin} == {"127.0.0.1"}
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
        assert not psutil.pid_exists(daemon.pid) or daemon.process.returncode == 0


def test_probes_answer_while_envoy_is_dead_and_envoy_comes_back(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    with run_kumadp(tmp_path, ports, *mesh_of(tmp_path, ports, app, backend)) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        envoy.suspend()
        assert get(ports.probes, "/app/healthz") == (200, "ok")
        envoy.kill()
        assert get(ports.probes, "/app/healthz") == (200, "ok")
        poll(lambda: get(ports.inbound) == (200, "web"), what="traffic after Envoy's death")
        assert daemon.envoy().pid != envoy.pid
        daemon.wait_ready()


def test_a_request_in_flight_ends_well_when_the_sidecar_stops(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    arguments = mesh_of(tmp_path, ports, app, backend)
    with run_kumadp(tmp_path, ports, *arguments[:-1], "20s") as daemon:
        daemon.wait_ready()
        answers: list[tuple[int, str]] = []
        client = threading.Thread(target=lambda: answers.append(get(ports.inbound, "/slow", timeout=30)))
        client.start()
        assert app.entered.wait(10)
        daemon.terminate()
        poll(lambda: get(ports.readiness, "/ready") == (503, "TERMINATING"), what="TERMINATING")
        app.release.set()
        client.join(20)
        assert answers == [(200, "web")]
        poll(lambda: closes_connection(ports.inbound), what="a closing inbound")
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def test_an_envoy_that_dies_in_the_drain_is_not_started_again(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    with run_kumadp(tmp_path, ports, *mesh_of(tmp_path, ports, app, backend)[:-1], "3600s") as daemon:
        daemon.wait_ready()
        daemon.terminate()
        poll(lambda: get(ports.readiness, "/ready") == (503, "TERMINATING"), what="TERMINATING")
        daemon.kill_envoy()
        assert daemon.wait() == ExitCode.OK
        assert "Envoy is gone: the drain ends" in daemon.output()
        assert daemon.output().count("initializing epoch") == 1


def test_a_third_signal_ends_at_once_with_its_own_code_and_no_child(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    with run_kumadp(tmp_path, ports, *mesh_of(tmp_path, ports, app, backend)[:-1], "60s") as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        envoy.suspend()
        for count in (1, 2, 3):
            daemon.terminate()
            poll(
                lambda: daemon.process.poll() is not None or f"SIGTERM ({count} of 3)" in daemon.output(),  # noqa: B023
                what="the signal in the log",
            )
        assert daemon.wait() == ExitCode.FORCED
        poll(lambda: not envoy.is_running() or envoy.status() == "zombie", what="Envoy gone")


def test_sigusr2_found_by_name_drains_inbound_and_stays(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    with run_kumadp(tmp_path, ports, *mesh_of(tmp_path, ports, app, backend)) as daemon:
        daemon.wait_ready()
        assert psutil.Process(daemon.pid).name() == "kuma-dp"
        daemon.process.send_signal(signal.SIGUSR2)
        poll(lambda: closes_connection(ports.inbound), what="a closing inbound")
        assert not closes_connection(ports.outbound)
        assert get(ports.readiness, "/ready") == (200, "READY")
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def test_sigkill_of_kumadp_leaves_no_child(tmp_path: Path, ports: Ports, app: Workload, backend: Workload) -> None:
    with run_kumadp(tmp_path, ports, *mesh_of(tmp_path, ports, app, backend)) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        daemon.process.kill()
        daemon.wait()
        poll(lambda: not envoy.is_running() or envoy.status() == "zombie", what="Envoy gone")


def test_after_sigkill_with_keep_the_next_kumadp_adopts_envoy(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    arguments = (*mesh_of(tmp_path, ports, app, backend), "--on-parent-death=keep")
    with run_kumadp(tmp_path, ports, *arguments) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        try:
            daemon.process.kill()
            daemon.wait()
            assert get(ports.inbound) == (200, "web")
            with run_kumadp(tmp_path, ports, *arguments) as second:
                second.wait_ready()
                assert f"envoy (pid {envoy.pid}) of an earlier kumadp is adopted" in second.output()
                assert get(ports.inbound) == (200, "web")
                second.terminate()
                assert second.wait() == ExitCode.OK
            assert not is_listening(ports.inbound)
            assert not (tmp_path / "work" / "state.json").exists()
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                envoy.kill()


def test_a_start_that_fails_leaves_envoy_to_the_next_kumadp(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    arguments = (*mesh_of(tmp_path, ports, app, backend), "--on-parent-death=keep")
    with run_kumadp(tmp_path, ports, *arguments) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        try:
            daemon.process.kill()
            daemon.wait()
            with socket.create_server(("127.0.0.1", 0)) as holder:
                taken = {"KUMA_READINESS_PORT": str(holder.getsockname()[1])}
                with run_kumadp(tmp_path, ports, *arguments, environment=taken) as failed:
                    assert failed.wait() == ExitCode.OS
            assert get(ports.inbound) == (200, "web")
            with run_kumadp(tmp_path, ports, *arguments) as third:
                third.wait_ready()
                assert f"envoy (pid {envoy.pid}) of an earlier kumadp is adopted" in third.output()
                third.terminate()
                assert third.wait() == ExitCode.OK
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                envoy.kill()


def test_an_envoy_that_cannot_be_adopted_ends_before_its_ports_are_checked(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    arguments = (*mesh_of(tmp_path, ports, app, backend), "--on-parent-death=keep")
    with run_kumadp(tmp_path, ports, *arguments) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        try:
            state = tmp_path / "work" / "state.json"
            poll(lambda: state.exists() and json.loads(state.read_text())["parts"], what="the state file")
            daemon.process.kill()
            daemon.wait()
            # As it is while a new Envoy takes the place of the old one.
            state.write_text(json.dumps({**json.loads(state.read_text()), "parts": {}}))
            with run_kumadp(tmp_path, ports, *arguments) as second:
                second.wait_ready()
                assert f"cannot adopt envoy (pid {envoy.pid}) left by the previous kumadp" in second.output()
                assert get(ports.inbound) == (200, "web")
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                envoy.kill()


def test_a_stop_during_an_adoption_ends_the_adopted_envoy(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    arguments = (*mesh_of(tmp_path, ports, app, backend), "--on-parent-death=keep")
    started, coredns = tmp_path / "asked", tmp_path / "coredns"
    coredns.write_text(f"#!/bin/sh\ntouch {started}\nexec sleep 60\n")
    coredns.chmod(0o755)
    with run_kumadp(tmp_path, ports, *arguments) as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        try:
            state = tmp_path / "work" / "state.json"
            poll(lambda: state.exists() and json.loads(state.read_text())["parts"], what="the state file")
            daemon.process.kill()
            daemon.wait()
            slow = ("--dns-enabled=true", f"--dns-coredns-path={coredns}")
            with run_kumadp(tmp_path, ports, *arguments, *slow) as second:
                poll(started.exists, what="the question for CoreDNS' version")
                assert get(ports.inbound) == (200, "web")
                second.terminate()
                assert second.wait() == ExitCode.OK
            assert not is_listening(ports.inbound)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                envoy.kill()


def test_an_exhausted_restart_budget_ends_kumadp_with_the_reason(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    with run_kumadp(tmp_path, ports, *mesh_of(tmp_path, ports, app, backend), "--envoy-restart-budget", "1") as daemon:
        daemon.wait_ready()
        first = daemon.kill_envoy()
        poll(lambda: daemon.children().get("envoy", first).pid != first.pid, what="the second Envoy")
        daemon.kill_envoy()
        assert daemon.wait() == ExitCode.CHILD_FAILED
        assert "signal 9 (KILL)" in daemon.output().splitlines()[-1]


def test_all_port_clashes_are_named_with_their_holder_before_anything_starts(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    held = ("inbound", "outbound", "admin", "readiness", "probes")
    with contextlib.ExitStack() as stack:
        for what in held:
            stack.enter_context(socket.create_server(("127.0.0.1", getattr(ports, what))))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", ports.dns))
        daemon = stack.enter_context(run_kumadp(tmp_path, ports, *mesh_of(tmp_path, ports, app, backend), dns=True))
        assert daemon.wait() == ExitCode.OS
        text = daemon.output()
    named = re.findall(r"ERROR daemon: .*?:(\d+)/(?:tcp|udp) .*held by .*pid (\d+)\)", text)
    ours = str(psutil.Process().pid)
    expected = {str(getattr(ports, what)) for what in (*held, "dns")}
    assert {port for port, pid in named if pid == ours} == expected, text
    assert text.splitlines()[-1].count("held by") == 1
    assert "Envoy 1." not in text
    assert "Traceback" not in text


def test_a_changed_dataplane_is_live_without_a_restart(
    tmp_path: Path, ports: Ports, app: Workload, backend: Workload
) -> None:
    with run_kumadp(tmp_path, ports, *mesh_of(tmp_path, ports, app, backend)) as daemon, workload("second") as second:
        daemon.wait_ready()
        envoy = daemon.envoy().pid
        write_mesh(tmp_path / "mesh", ports, app.port, second.port)
        poll(lambda: get(ports.outbound) == (200, "second"), what="the changed backend")
        (tmp_path / "mesh" / "backend.yaml").write_text("type: Dataplane\nmesh: [")
        poll(lambda: "backend.yaml" in daemon.output(), what="a line about the broken file")
        assert get(ports.outbound) == (200, "second")
        assert daemon.envoy().pid == envoy
