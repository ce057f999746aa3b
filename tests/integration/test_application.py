"""`kumadp run ... -- CMD`: the application as a child, from its start to its exit code, with a real Envoy."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from tests.support import short_grace_period
from tests.support.daemon import Ports, get, is_listening, run_kumadp, workload, write_mesh
from tests.support.own_application import OwnApplication
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.processes import is_alive
from tests.support.rig import open_rig
from tests.support.standalone import logged
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process
# Leads a session with the terminal, as a login does; kumadp's log stays where it was.
_LOGIN = """
import fcntl, os, sys, termios
os.setsid()
terminal = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
os.dup2(terminal, 0)
os.dup2(terminal, 1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
TOKEN = "eyJhbGciOiJSUzI1NiJ9.nobody-may-see-this.signature"


@pytest.fixture
def app_port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def mesh(tmp_path: Path, ports: Ports, app_port: int) -> Iterator[tuple[str, ...]]:
    """Flags of a data plane whose outbound leads to a workload that answers ``backend``."""
    with workload("backend") as backend:
        folder = write_mesh(tmp_path / "mesh", ports, app_port, backend.port)
        yield ("--standalone", str(folder), "--name=web", "--drain-time=60s", "--min-drain-time=0s")


@pytest.fixture
def app(tmp_path: Path, ports: Ports, app_port: int) -> OwnApplication:
    return OwnApplication(tmp_path / "app", app_port, ports.outbound)


def python(script: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", script)


def test_it_starts_when_traffic_flows_and_its_exit_code_is_ours(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...]
) -> None:
    script = f"""
import urllib.request
print("answer", urllib.request.urlopen("http://127.0.0.1:{ports.outbound}/").read().decode())
raise SystemExit(7)
"""
    with run_kumadp(tmp_path, ports, *mesh, *python(script)) as daemon:
        assert daemon.wait() == 7, daemon.output()
        assert "answer backend" in daemon.output().splitlines()
        assert "exit code 7: the application ended with exit code 7" in daemon.output()
        assert not is_listening(ports.outbound)


def test_an_open_connection_does_not_delay_a_stop_after_the_application_ended(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication
) -> None:
    with run_kumadp(tmp_path, ports, *mesh, *app.command) as daemon:
        daemon.wait_ready()
        poll(lambda: get(ports.inbound) == (200, "app"), what="the application")
        with socket.create_connection(("127.0.0.1", ports.inbound)):
            os.kill(app.pid, signal.SIGKILL)
            assert daemon.wait() == 128 + signal.SIGKILL, daemon.output()


def test_inbound_drains_first_and_the_application_calls_out_until_it_has_ended(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication
) -> None:
    with run_kumadp(tmp_path, ports, *mesh, *app.command) as daemon:
        daemon.wait_ready()
        poll(lambda: get(ports.inbound) == (200, "app"), what="the application")
        answers: list[tuple[int, str]] = []
        peer = threading.Thread(target=lambda: answers.append(get(ports.inbound, "/slow", timeout=60)))
        peer.start()
        poll(lambda: app.read("entered") == "" and (app.folder / "entered").exists(), what="a request in flight")
        daemon.terminate()
        logged(daemon, "draining for at most")
        assert get(ports.readiness, "/ready") == (503, "TERMINATING")
        assert app.signals == []
        assert get(ports.outbound) == (200, "backend")
        app.touch("go")
        peer.join(30)
        assert answers == [(200, "app")]
        assert poll(lambda: app.read("called"), what="its last call") == "backend"
        assert app.signals == ["SIGTERM"]
        assert get(ports.outbound) == (200, "backend")
        app.touch("end")
        assert daemon.wait() == 3, daemon.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_it_gets_the_signal_that_was_sent_to_us(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication, number: signal.Signals
) -> None:
    with run_kumadp(tmp_path, ports, *mesh, *app.command) as daemon:
        poll(lambda: app.pid, what="the application")
        app.touch("end")
        daemon.process.send_signal(number)
        assert daemon.wait() == 3, daemon.output()
        assert app.signals == [number.name]


def test_after_a_drain_of_inbound_the_signal_is_sent_at_once(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication
) -> None:
    app.touch("end")
    with run_kumadp(tmp_path, ports, *mesh, "--min-drain-time=50s", *app.command) as daemon:
        poll(lambda: app.pid, what="the application")
        daemon.process.send_signal(signal.SIGUSR2)
        logged(daemon, "SIGUSR2: draining inbound")
        assert app.signals == []
        daemon.terminate()
        assert daemon.wait() == 3
        assert app.read("called") == "backend"


def test_a_second_signal_cuts_the_drain_short_but_not_the_application(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication
) -> None:
    with run_kumadp(tmp_path, ports, *mesh, "--min-drain-time=50s", *app.command) as daemon:
        poll(lambda: app.pid, what="the application")
        daemon.terminate()
        logged(daemon, "draining for at most")
        assert app.signals == []
        daemon.terminate()
        assert poll(lambda: app.read("called"), what="its last call") == "backend"
        app.touch("end")
        assert daemon.wait() == 3


def test_a_third_signal_kills_everything(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication
) -> None:
    with run_kumadp(tmp_path, ports, *mesh, *app.command) as daemon:
        pid = app.pid
        for count in ("(1 of 3)", "(2 of 3)", "(3 of 3)"):
            daemon.terminate()
            logged(daemon, count)
        assert daemon.wait() == ExitCode.FORCED
        poll(lambda: not is_alive(pid), what="the end of the application")


def test_an_application_that_does_not_stop_is_killed_with_its_children(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...]
) -> None:
    script = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("other", subprocess.Popen(["sleep", "1000"]).pid, flush=True)
while True: time.sleep(1000)
"""
    with run_kumadp(tmp_path, ports, *mesh, "--application-grace=200ms", *python(script)) as daemon:
        other = int(logged(daemon, "other ").split()[1])
        daemon.terminate()
        assert daemon.wait() == 128 + signal.SIGKILL, daemon.output()
        poll(lambda: not is_alive(other), what="the end of what it left running")


def test_sighup_is_forwarded(tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication) -> None:
    app.touch("end")
    with run_kumadp(tmp_path, ports, *mesh, *app.command) as daemon:
        poll(lambda: app.pid, what="the application")
        daemon.process.send_signal(signal.SIGHUP)
        poll(lambda: app.signals == ["SIGHUP"], what="the signal")
        assert "reload (SIGHUP)" not in daemon.output()
        daemon.terminate()
        assert daemon.wait() == 3


def test_the_application_can_start_without_waiting_for_traffic(tmp_path: Path, ports: Ports) -> None:
    (port,) = free_ports(1)
    away = ("--name=web", "--mesh=default", f"--cp-address=http://127.0.0.1:{port}", "--application-start=at-once")
    with run_kumadp(tmp_path, ports, *away, *python("raise SystemExit(5)")) as daemon:
        assert daemon.wait() == 5, daemon.output()


def test_a_stop_before_the_application_starts_exits_cleanly(tmp_path: Path, ports: Ports, app: OwnApplication) -> None:
    (port,) = free_ports(1)
    away = ("--name=web", "--mesh=default", f"--cp-address=http://127.0.0.1:{port}")
    with run_kumadp(tmp_path, ports, *away, *app.command) as daemon:
        logged(daemon, "waiting: bootstrap")
        daemon.terminate()
        assert daemon.wait() == 0, daemon.output()
        assert app.read("pid") == ""


def test_a_failed_sidecar_stops_the_application(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication
) -> None:
    app.touch("end")
    with run_kumadp(tmp_path, ports, *mesh, "--envoy-restart-budget=0", *app.command) as daemon:
        poll(lambda: app.pid, what="the application")
        daemon.kill_envoy()
        assert daemon.wait() == ExitCode.CHILD_FAILED, daemon.output()
        assert app.signals == ["SIGTERM"]


def test_a_failed_sidecar_may_leave_the_application_and_forward_signals(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication, app_port: int
) -> None:
    with run_kumadp(
        tmp_path, ports, *mesh, "--envoy-restart-budget=0", "--on-sidecar-end=leave", *app.command
    ) as daemon:
        poll(lambda: app.pid, what="the application")
        daemon.kill_envoy()
        logged(daemon, "the application lives on without a sidecar")
        assert get(app_port) == (200, "app")
        daemon.process.send_signal(signal.SIGHUP)
        poll(lambda: app.signals == ["SIGHUP"], what="the signal")
        app.touch("end")
        daemon.terminate()
        assert daemon.wait() == 3, daemon.output()
        assert app.signals == ["SIGHUP", "SIGTERM"]


@pytest.mark.parametrize("flag", ["stop", "leave"])
def test_the_application_when_the_control_plane_rejects_the_data_plane(
    tmp_path: Path, app: OwnApplication, app_port: int, flag: str
) -> None:
    short = (sys.executable, str(Path(short_grace_period.__file__)), "0.5", "1.0")
    app.touch("end")
    with XdsControlPlane() as plane, open_rig(tmp_path, plane) as rig:
        plane.faults.linger = 0.0
        with rig.run(f"--on-sidecar-end={flag}", "--min-drain-time=0s", *app.command, prefix=short) as daemon:
            poll(lambda: app.pid, what="the application")
            plane.faults.refuse_token = lambda _token: "token is revoked"
            plane.reset_streams()
            if flag == "leave":
                logged(daemon, "the application lives on without a sidecar")
                assert get(app_port) == (200, "app")
                assert app.signals == []
                daemon.terminate()
            assert daemon.wait() == (3 if flag == "leave" else ExitCode.CONTROL_PLANE_REFUSED), daemon.output()
            assert app.signals == ["SIGTERM"]


@pytest.mark.parametrize(("flag", "signals"), [("stop", ["SIGTERM"]), ("leave", [])])
def test_the_application_when_kumadp_is_killed(
    tmp_path: Path,
    ports: Ports,
    mesh: tuple[str, ...],
    app: OwnApplication,
    app_port: int,
    flag: str,
    signals: list[str],
) -> None:
    with run_kumadp(tmp_path, ports, *mesh, f"--on-sidecar-end={flag}", *app.command) as daemon:
        pid = app.pid
        envoy = daemon.envoy()
        daemon.process.kill()
        daemon.process.wait()
        try:
            poll(lambda: not is_alive(envoy.pid), what="the end of Envoy")
            if signals:
                poll(lambda: app.signals, what="the signal")
            # The kernel may send it for each thread of kumadp that ends.
            assert set(app.signals) == set(signals)
            assert get(app_port) == (200, "app")
        finally:
            os.kill(pid, signal.SIGKILL)


def test_it_survives_a_reexecution(tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication) -> None:
    with run_kumadp(tmp_path, ports, *mesh, *app.command) as daemon:
        pid = app.pid
        daemon.process.send_signal(signal.SIGUSR1)
        logged(daemon, "takes over")
        poll(lambda: daemon.output().count("-> READY") == 2, what="READY again")
        assert app.pid == pid
        assert app.signals == []
        # It does not die with the program that started it, and it is still ours to reap.
        app.touch("end")
        daemon.terminate()
        assert daemon.wait() == 3, daemon.output()
        assert app.signals == ["SIGTERM"]


def test_its_environment_is_the_user_s_without_our_secrets(
    tmp_path: Path, ports: Ports, mesh: tuple[str, ...], app: OwnApplication
) -> None:
    mine = {"KUMA_DATAPLANE_RUNTIME_TOKEN": TOKEN, "APPLICATION_SETTING": "its own"}
    with run_kumadp(tmp_path, ports, *mesh, *app.command, environment=mine) as daemon:
        poll(lambda: app.pid, what="the application")
        given = dict(line.split("=", 1) for line in app.read("environ").splitlines() if "=" in line)
        assert given["APPLICATION_SETTING"] == "its own"
        assert TOKEN not in app.read("environ")
        expected = {name for name in daemon.environment if name != "KUMA_DATAPLANE_RUNTIME_TOKEN"}
        assert {name for name in expected if not name.startswith("KUMADP_")} <= set(given)
        app.touch("end")


def test_standard_input_and_output_are_its_own(tmp_path: Path, ports: Ports, mesh: tuple[str, ...]) -> None:
    script = "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.stderr.write('its errors\\n')"
    # A subprocess of a subprocess: what run_kumadp gives us has no standard input.
    with run_kumadp(
        tmp_path, ports, *mesh, *python(script), prefix=("sh", "-c", f'echo hello | exec "$@" >{tmp_path}/out', "sh")
    ) as daemon:
        assert daemon.wait() == 0, daemon.output()
        assert (tmp_path / "out").read_text() == "HELLO\n"
        assert "its errors" in daemon.output().splitlines()


def test_on_a_terminal_ctrl_c_is_for_the_application_alone(tmp_path: Path, ports: Ports, mesh: tuple[str, ...]) -> None:
    script = """
import signal, sys, time
def stopped(*_):
    print("input:", input(), flush=True)
    sys.exit(9)
signal.signal(signal.SIGINT, stopped)
print("waits", flush=True)
while True: time.sleep(1000)
"""
    ours, its = pty.openpty()
    output = bytearray()

    def read(what: bytes) -> bool:
        output.extend(os.read(ours, 4096))
        return what in output

    prefix = (sys.executable, "-c", _LOGIN, os.ttyname(its))
    try:
        with run_kumadp(tmp_path, ports, *mesh, *python(script), prefix=prefix) as daemon:
            poll(lambda: read(b"waits"), what="the application")
            os.write(ours, b"\x03")
            os.write(ours, b"a line\n")
            poll(lambda: read(b"input: a line"), what="its answer")
            assert daemon.wait() == 9
            assert "SIGINT" not in daemon.output()
    finally:
        os.close(ours)
        os.close(its)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--name=web", "--mesh=default", "--"), ExitCode.USAGE, "nothing follows --"),
        (("--name=web", "--mesh=default", "--", "no-such-program"), ExitCode.OS, "no-such-program cannot be run"),
        (("--dataplane-file=-", "--", "true"), ExitCode.SETTINGS, "standard input is the application's"),
    ],
)
def test_impossible_commands_fail_at_once(arguments: tuple[str, ...], code: ExitCode, text: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kumadp", "run", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert len(done.stderr.splitlines()) == 1
