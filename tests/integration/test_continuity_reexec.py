"""kumadp re-executes itself under load: same pid, same children, no failed request."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import kumadp
from kumadp.errors import ExitCode
from kumadp.host.reexec.interim_responder import CHECK_VARIABLE, VARIABLE
from tests.support.control_planes import on_both_control_planes
from tests.support.daemon import get
from tests.support.needs import need_coredns
from tests.support.poll import poll
from tests.support.rig import NODE, SOON
from tests.support.xds.resources import SECRET

if TYPE_CHECKING:
    from tests.support.daemon import Daemon
    from tests.support.loaded_rig import LoadedRig
    from tests.support.xds.plane import XdsControlPlane

pytestmark = pytest.mark.process


def _name(daemon: Daemon) -> str:
    return Path(f"/proc/{daemon.pid}/comm").read_text().strip()


@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
@on_both_control_planes
def test_no_request_is_lost_and_no_process_changes(loaded_rig: LoadedRig, mtls: bool) -> None:
    if mtls:
        loaded_rig.plane.use_mtls()
    loaded_rig.with_probes()
    with loaded_rig.up() as daemon:
        envoy, started = loaded_rig.the_envoy(), loaded_rig.status(daemon)["started"]
        with loaded_rig.load():
            loaded_rig.reexec(daemon)
            loaded_rig.wait_serving(daemon)
            done = loaded_rig.run_command(daemon, "reexec")
            assert (done.returncode, f"(pid {daemon.pid})" in done.stdout) == (0, True), done
            loaded_rig.wait_state(daemon, "open")
            poll(lambda: loaded_rig.settled(daemon), what="everything acknowledged again", deadline=SOON)
            poll(lambda: loaded_rig.plane.registered == [NODE], what="the Dataplane in the mesh", deadline=SOON)
        status = loaded_rig.wait_phase(daemon, "READY")
        assert (status["pid"], status["started"]) == (daemon.pid, started)
        assert status["reexec"] == {"count": 2}
        assert (loaded_rig.the_envoy(), envoy.ppid(), loaded_rig.restarts(daemon)) == (envoy, daemon.pid, 0)
        assert _name(daemon) == "kuma-dp"
        poll(lambda: loaded_rig.status(daemon)["concerns"] == [], what="no warning", deadline=SOON)
        with loaded_rig.load():
            assert "epoch 1 serves" in loaded_rig.reload(daemon)
            poll(lambda: envoy not in loaded_rig.envoys(), what="the end of the old Envoy", deadline=SOON)
        loaded_rig.kill_envoy(daemon)
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
    assert loaded_rig.leftovers() == []


@pytest.mark.timeout(400)
def test_twenty_times_in_a_row(loaded_rig: LoadedRig) -> None:
    need_coredns()
    loaded_rig.with_probes()
    with loaded_rig.up(dns=True) as daemon:
        envoy, coredns = loaded_rig.the_envoy(), loaded_rig.corednses()
        process = psutil.Process(daemon.pid)
        loaded_rig.reexec(daemon)
        descriptors = process.num_fds()
        with loaded_rig.load(names=True, rate=300):
            for _ in range(20):
                loaded_rig.reexec(daemon)
        assert ([loaded_rig.the_envoy()], loaded_rig.corednses()) == ([envoy], coredns)
        assert len(coredns) == 1
        poll(lambda: process.num_fds() <= descriptors + 3, what="no descriptor more")
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
    assert loaded_rig.leftovers() == []


def test_while_the_control_plane_is_away(loaded_rig: LoadedRig, plane: XdsControlPlane) -> None:
    """What the relay knows, keys among it, comes along: the next Envoy has it all."""
    plane.use_mtls()
    with loaded_rig.up() as daemon:
        assert SECRET in loaded_rig.types(daemon)
        plane.gone()
        with loaded_rig.load():
            loaded_rig.reexec(daemon)
            envoy = loaded_rig.the_envoy()
            # The adopted Envoy subscribes again and gets everything before it is killed.
            poll(lambda: SECRET in loaded_rig.types(daemon), what="its stream")
        loaded_rig.kill_envoy(daemon)
        assert loaded_rig.the_envoy() != envoy
        plane.back()
        loaded_rig.wait_state(daemon, "open")
        poll(lambda: loaded_rig.settled(daemon), what="everything acknowledged again", deadline=SOON)


def test_token_and_keys_are_nowhere(loaded_rig: LoadedRig, plane: XdsControlPlane) -> None:
    plane.use_mtls()
    with loaded_rig.up() as daemon:
        loaded_rig.reexec(daemon)
        loaded_rig.kill_envoy(daemon)
        secrets = (plane.token().encode(), b"PRIVATE KEY")
        for pid in (daemon.pid, *(child.pid for child in loaded_rig.envoys())):
            for what in ("cmdline", "environ"):
                assert not _found(Path(f"/proc/{pid}/{what}"), secrets)
        files = [path for folder in (loaded_rig.work, loaded_rig.state) for path in folder.rglob("*") if path.is_file()]
        assert any(path.name == "last-good.msgpack" for path in files)
        assert [path for path in (*files, daemon.log) if _found(path, secrets)] == []
        memfds = [entry for entry in Path(f"/proc/{daemon.pid}/fd").iterdir() if "handover" in str(entry.readlink())]
        assert memfds == []


def _found(path: Path, secrets: tuple[bytes, ...]) -> bool:
    data = path.read_bytes()
    return any(secret in data for secret in secrets)


BROKEN = {
    "syntax": ("relay/state_machine.py", "class RelayStateMachine:", "class RelayStateMachine(:"),
    "import": ("daemon/reload.py", "import asyncio\n", "import asyncio\nimport not_there\n"),
    "hand-over": ("core/previous.py", "    ready: bool\n", "    ready: bool\n    more: int\n"),
    "settings": ("settings/model.py", '"--drain-time"', '"--drained-time"'),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_program_is_refused_and_the_old_one_keeps_running(loaded_rig: LoadedRig, how: str) -> None:
    ours, file = Path(kumadp.__file__).parent, BROKEN[how][0]
    shutil.copytree(ours, loaded_rig.folder / "kumadp", ignore=shutil.ignore_patterns("__pycache__"))
    broken = loaded_rig.folder / "kumadp" / file
    with loaded_rig.up(prefix=("env", f"--chdir={loaded_rig.folder}")) as daemon:
        envoy, stream = loaded_rig.the_envoy(), loaded_rig.plane.stream(NODE)
        text = broken.read_text()
        assert BROKEN[how][1] in text
        broken.write_text(text.replace(*BROKEN[how][1:], 1))
        with loaded_rig.load():
            done = loaded_rig.run_command(daemon, "reexec")
            assert done.returncode == ExitCode.REFUSED, done
            assert "the new program does not start" in done.stderr
            assert loaded_rig.status(daemon)["reexec"]["count"] == 0
            assert (loaded_rig.the_envoy(), loaded_rig.plane.stream(NODE)) == (envoy, stream)
            broken.write_text(text)
            loaded_rig.reexec(daemon)
        assert loaded_rig.the_envoy() == envoy


def test_readiness_is_answered_while_the_new_program_starts(loaded_rig: LoadedRig) -> None:
    """A kubelet's probe has one second, a start on a busy host may need more."""
    shutil.copytree(
        Path(kumadp.__file__).parent, loaded_rig.folder / "kumadp", ignore=shutil.ignore_patterns("__pycache__")
    )
    gate, slow = loaded_rig.folder / "gate", loaded_rig.folder / "kumadp" / "daemon" / "start.py"
    wait = f"import os, time\nwhile {CHECK_VARIABLE!r} not in os.environ and not os.path.exists({str(gate)!r}):\n"
    with loaded_rig.up(prefix=("env", f"--chdir={loaded_rig.folder}")) as daemon:
        slow.write_text(f"{slow.read_text()}\n{wait}    time.sleep(0.01)\n")
        with loaded_rig.load():
            daemon.process.send_signal(signal.SIGUSR1)
            environ = Path(f"/proc/{daemon.pid}/environ")
            poll(lambda: f"{VARIABLE}=".encode() in environ.read_bytes(), what="the new program", deadline=SOON)
            for _ in range(20):
                assert get(loaded_rig.ports.readiness, "/ready") == (200, "READY")
            gate.touch()
            poll(lambda: loaded_rig.count(daemon) == 1, what="its start", deadline=SOON)
            loaded_rig.wait_phase(daemon, "READY")


# Seconds: less than the kernel holds back a client that sends nothing.
LATE = 0.6


def test_a_client_that_sends_its_request_to_the_next_program_is_answered(loaded_rig: LoadedRig) -> None:
    """A probe whose process waits for a processor between connect and send, for longer than kumadp could wait."""
    loaded_rig.with_probes()
    requests = {loaded_rig.ports.readiness: "/ready", loaded_rig.ports.probes: "/app/healthz"}
    clients: deque[tuple[float, int, socket.socket]] = deque()
    with loaded_rig.up() as daemon:
        environ = Path(f"/proc/{daemon.pid}/environ")
        daemon.process.send_signal(signal.SIGUSR1)
        while f"{VARIABLE}=".encode() not in environ.read_bytes():
            clients += [(time.monotonic(), port, socket.create_connection(("127.0.0.1", port))) for port in requests]
            while clients[0][0] < time.monotonic() - LATE:
                clients.popleft()[2].close()
            time.sleep(0.02)
        for _, port, client in clients:
            client.settimeout(SOON)
            client.sendall(f"GET {requests[port]} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        for _, _, client in clients:
            with client:
                answer = b"".join(iter(lambda: client.recv(4096), b""))  # noqa: B023
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        poll(lambda: loaded_rig.count(daemon) == 1, what="its start", deadline=SOON)


def test_a_dataplane_changed_before_the_reexec_is_applied(loaded_rig: LoadedRig) -> None:
    config = loaded_rig.folder / "kumadp.yaml"
    config.write_text("dataplaneRuntime: {envoyLogLevel: warning}\n")
    with loaded_rig.up(f"--config={config}") as daemon:
        old = loaded_rig.the_envoy()
        config.write_text("dataplaneRuntime: {envoyLogLevel: error}\n")
        with loaded_rig.load():
            loaded_rig.reexec(daemon)
            poll(lambda: old not in loaded_rig.envoys(), what="the end of the old Envoy", deadline=SOON)
        assert "error" in loaded_rig.the_envoy().cmdline()


def test_reexec_waits_for_a_running_reload(loaded_rig: LoadedRig) -> None:
    """In the middle of a reload it is either refused or done completely and counted once; traffic continues."""
    with loaded_rig.up() as daemon, loaded_rig.load():
        for pause in range(6):
            daemon.process.send_signal(signal.SIGHUP)
            poll(lambda: loaded_rig.envoys()[pause > 2 :], what="a reload under way")  # noqa: B023
            loaded_rig.try_reexec(daemon)
            poll(lambda: len(loaded_rig.envoys()) == 1, what="a single Envoy")
        count = loaded_rig.count(daemon)
        poll(lambda: loaded_rig.try_reexec(daemon), what="a re-execution", deadline=SOON)
        assert loaded_rig.count(daemon) == count + 1


def test_a_kumadp_that_was_re_executed_is_killed(loaded_rig: LoadedRig) -> None:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(loaded_rig.up())
        envoy = loaded_rig.the_envoy()
        with loaded_rig.load(watched=False):
            loaded_rig.reexec(daemon)
            loaded_rig.kill(daemon)
            daemon = stack.enter_context(loaded_rig.up())
            assert loaded_rig.the_envoy() == envoy, daemon.output()
            loaded_rig.reexec(daemon)
            assert loaded_rig.the_envoy() == envoy
            loaded_rig.reload(daemon)
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
    assert loaded_rig.leftovers() == []


def test_nothing_is_re_executed_while_it_stops(loaded_rig: LoadedRig) -> None:
    with loaded_rig.up("--drain-time=5s") as daemon:
        daemon.terminate()
        loaded_rig.wait_phase(daemon, "DRAINING")
        done = loaded_rig.run_command(daemon, "reexec")
        assert (done.returncode, "not while DRAINING" in done.stderr) == (ExitCode.REFUSED, True), done
        assert daemon.wait() == ExitCode.OK
    assert loaded_rig.envoys() == []
