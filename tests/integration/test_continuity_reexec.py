"""kumadp re-executes itself under load: same pid, same children, and nobody notices."""

from __future__ import annotations

import contextlib
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import kumadp
from kumadp.errors import ExitCode
from kumadp.host.reexec.interim_responder import CHECK_VARIABLE, VARIABLE
from tests.support.control_planes import KINDS
from tests.support.daemon import get
from tests.support.loaded_rig import LoadedRig, loaded_rig
from tests.support.needs import need_coredns
from tests.support.poll import poll
from tests.support.rig import NODE, SOON
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemon import Daemon

pytestmark = pytest.mark.process


@pytest.fixture(params=KINDS)
def at(request: pytest.FixtureRequest) -> Iterator[LoadedRig]:
    with loaded_rig(request.param) as made:
        yield made


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as made:
        yield made


@pytest.fixture
def alone(plane: XdsControlPlane) -> Iterator[LoadedRig]:
    with loaded_rig(plane) as made:
        yield made


def _name(daemon: Daemon) -> str:
    return Path(f"/proc/{daemon.pid}/comm").read_text().strip()


@pytest.mark.parametrize("mtls", [False, True], ids=["plain", "mtls"])
def test_nobody_notices(at: LoadedRig, mtls: bool) -> None:
    if mtls:
        at.plane.use_mtls()
    at.with_probes()
    with at.up() as daemon:
        envoy, started = at.the_envoy(), at.status(daemon)["started"]
        with at.load():
            at.reexec(daemon)
            done = at.ask(daemon, "reexec")
            assert (done.returncode, f"(pid {daemon.pid})" in done.stdout) == (0, True), done
            at.wait_state(daemon, "open")
            poll(lambda: at.settled(daemon), what="everything taken again", deadline=SOON)
            poll(lambda: at.plane.registered == [NODE], what="the Dataplane in the mesh", deadline=SOON)
        status = at.wait_phase(daemon, "READY")
        assert (status["pid"], status["started"]) == (daemon.pid, started)
        assert status["reexec"] == {"count": 2}
        assert (at.the_envoy(), envoy.ppid(), at.restarts(daemon)) == (envoy, daemon.pid, 0)
        assert _name(daemon) == "kuma-dp"
        poll(lambda: at.status(daemon)["concerns"] == [], what="no concern", deadline=SOON)
        with at.load():
            assert "epoch 1 serves" in at.reload(daemon)
            poll(lambda: envoy not in at.envoys(), what="the end of the old Envoy")
        at.kill_envoy(daemon)
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
    assert at.leftovers() == []


@pytest.mark.timeout(400)
def test_twenty_times_in_a_row(alone: LoadedRig) -> None:
    need_coredns()
    alone.with_probes()
    with alone.up(dns=True) as daemon:
        envoy, coredns = alone.the_envoy(), alone.corednses()
        process = psutil.Process(daemon.pid)
        alone.reexec(daemon)
        descriptors = process.num_fds()
        with alone.load(names=True, rate=300):
            for _ in range(20):
                alone.reexec(daemon)
        assert ([alone.the_envoy()], alone.corednses()) == ([envoy], coredns)
        assert len(coredns) == 1
        poll(lambda: process.num_fds() <= descriptors + 3, what="no descriptor more")
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
    assert alone.leftovers() == []


def test_while_the_control_plane_is_away(alone: LoadedRig, plane: XdsControlPlane) -> None:
    """What the relay knows, keys among it, comes along: the next Envoy has it all."""
    plane.use_mtls()
    with alone.up() as daemon:
        assert SECRET in alone.types(daemon)
        plane.gone()
        with alone.load():
            alone.reexec(daemon)
            envoy = alone.the_envoy()
            # It asks for all again, and has it before it dies.
            poll(lambda: SECRET in alone.types(daemon), what="its stream")
        alone.kill_envoy(daemon)
        assert alone.the_envoy() != envoy
        plane.back()
        alone.wait_state(daemon, "open")
        poll(lambda: alone.settled(daemon), what="everything taken again", deadline=SOON)


def test_token_and_keys_are_nowhere(alone: LoadedRig, plane: XdsControlPlane) -> None:
    plane.use_mtls()
    with alone.up() as daemon:
        alone.reexec(daemon)
        alone.kill_envoy(daemon)
        secrets = (plane.token().encode(), b"PRIVATE KEY")
        for pid in (daemon.pid, *(child.pid for child in alone.envoys())):
            for what in ("cmdline", "environ"):
                assert not _found(Path(f"/proc/{pid}/{what}"), secrets)
        files = [path for folder in (alone.work, alone.state) for path in folder.rglob("*") if path.is_file()]
        assert any(path.name == "last-good.msgpack" for path in files)
        assert [path for path in (*files, daemon.log) if _found(path, secrets)] == []
        memfds = [entry for entry in Path(f"/proc/{daemon.pid}/fd").iterdir() if "handover" in str(entry.readlink())]
        assert memfds == []


def _found(path: Path, secrets: tuple[bytes, ...]) -> bool:
    data = path.read_bytes()
    return any(secret in data for secret in secrets)


BROKEN = {
    "syntax": ("relay/state_machine.py", "class RelayStateMachine:", "class RelayStateMachine(:"),
    "import": ("daemon/reload.py", "import logging\n", "import logging\nimport not_there\n"),
    "hand-over": ("daemon/adoption.py", "    ready: bool\n", "    ready: bool\n    more: int\n"),
    "settings": ("settings/model.py", '"--drain-time"', '"--drained-time"'),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_program_is_refused_and_the_old_one_goes_on(alone: LoadedRig, how: str) -> None:
    ours, file = Path(kumadp.__file__).parent, BROKEN[how][0]
    shutil.copytree(ours, alone.folder / "kumadp", ignore=shutil.ignore_patterns("__pycache__"))
    broken = alone.folder / "kumadp" / file
    with alone.up(prefix=("env", f"--chdir={alone.folder}")) as daemon:
        envoy, stream = alone.the_envoy(), alone.plane.stream(NODE)
        text = broken.read_text()
        assert BROKEN[how][1] in text
        broken.write_text(text.replace(*BROKEN[how][1:], 1))
        with alone.load():
            done = alone.ask(daemon, "reexec")
            assert done.returncode == ExitCode.REFUSED, done
            assert "the new program does not start" in done.stderr
            assert alone.status(daemon)["reexec"]["count"] == 0
            assert (alone.the_envoy(), alone.plane.stream(NODE)) == (envoy, stream)
            broken.write_text(text)
            alone.reexec(daemon)
        assert alone.the_envoy() == envoy


def test_readiness_is_answered_while_the_new_program_starts(alone: LoadedRig) -> None:
    """A kubelet's probe has one second, a start on a busy host may need more."""
    shutil.copytree(Path(kumadp.__file__).parent, alone.folder / "kumadp", ignore=shutil.ignore_patterns("__pycache__"))
    gate, slow = alone.folder / "gate", alone.folder / "kumadp" / "daemon" / "start.py"
    wait = f"import os, time\nwhile {CHECK_VARIABLE!r} not in os.environ and not os.path.exists({str(gate)!r}):\n"
    with alone.up(prefix=("env", f"--chdir={alone.folder}")) as daemon:
        slow.write_text(f"{slow.read_text()}\n{wait}    time.sleep(0.01)\n")
        with alone.load():
            daemon.process.send_signal(signal.SIGUSR1)
            environ = Path(f"/proc/{daemon.pid}/environ")
            poll(lambda: f"{VARIABLE}=".encode() in environ.read_bytes(), what="the new program", deadline=SOON)
            for _ in range(20):
                assert get(alone.ports.readiness, "/ready") == (200, "READY")
            gate.touch()
            poll(lambda: alone.count(daemon) == 1, what="its start", deadline=SOON)
            alone.wait_phase(daemon, "READY")


def test_what_has_changed_meanwhile_is_taken(alone: LoadedRig) -> None:
    config = alone.folder / "kumadp.yaml"
    config.write_text("dataplaneRuntime: {envoyLogLevel: warning}\n")
    with alone.up(f"--config={config}") as daemon:
        old = alone.the_envoy()
        config.write_text("dataplaneRuntime: {envoyLogLevel: error}\n")
        with alone.load():
            alone.reexec(daemon)
            poll(lambda: old not in alone.envoys(), what="the end of the old Envoy", deadline=SOON)
        assert "error" in alone.the_envoy().cmdline()


def test_it_waits_for_nothing_half_done(alone: LoadedRig) -> None:
    """Asked for in the middle of a reload it is refused or done, whole; traffic goes on, and it can be asked again."""
    with alone.up() as daemon, alone.load():
        for pause in range(6):
            daemon.process.send_signal(signal.SIGHUP)
            poll(lambda: alone.envoys()[pause > 2 :], what="a reload under way")  # noqa: B023
            alone.ask(daemon, "reexec")
            alone.wait_phase(daemon, "READY")
            poll(lambda: len(alone.envoys()) == 1, what="one Envoy alone")
        # Refused while something is half done still, and done when it is not.
        poll(lambda: alone.ask(daemon, "reexec").returncode == 0, what="a re-execution", deadline=SOON)
        alone.wait_phase(daemon, "READY")


def test_a_kumadp_that_was_re_executed_is_killed(alone: LoadedRig) -> None:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(alone.up())
        envoy = alone.the_envoy()
        with alone.load(asked=False):
            alone.reexec(daemon)
            alone.kill(daemon)
            daemon = stack.enter_context(alone.up())
            assert alone.the_envoy() == envoy, daemon.output()
            alone.reexec(daemon)
            assert alone.the_envoy() == envoy
            alone.reload(daemon)
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
    assert alone.leftovers() == []


def test_nothing_is_re_executed_while_it_stops(alone: LoadedRig) -> None:
    with alone.up("--drain-time=5s") as daemon:
        daemon.terminate()
        alone.wait_phase(daemon, "DRAINING")
        done = alone.ask(daemon, "reexec")
        assert (done.returncode, "not while DRAINING" in done.stderr) == (ExitCode.REFUSED, True), done
        assert daemon.wait() == ExitCode.OK
    assert alone.envoys() == []
