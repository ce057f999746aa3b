"""`kumadp sweep` with a real Envoy that a killed kumadp left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.support.daemon import Ports, folders, run_kumadp, workload, write_mesh
from tests.support.poll import poll
from tests.support.rig import Rig
from tests.support.xds.plane import XdsControlPlane

pytestmark = pytest.mark.process


def sweep(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kumadp", "sweep", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


def test_leftovers_of_a_killed_kumadp_are_ended_and_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    ports = Ports.take()
    work = folders(tmp_path)[1]
    with workload("web") as app:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        arguments = ("--standalone", str(mesh), "--name=web", "--on-parent-death=keep")
        with run_kumadp(tmp_path, ports, *arguments) as daemon:
            daemon.wait_ready()
            envoy = daemon.envoy()
            done = sweep("--work-dir", work)
            assert (done.returncode, done.stdout) == (71, "")
            assert "is used by another kumadp that is running" in done.stderr
            assert envoy.is_running()
            daemon.process.kill()
            daemon.wait()
            assert envoy.is_running()
            # systemd would restart it, but is not there to be queried.
            done = sweep("--unit=kumadp.service", RUNTIME_DIRECTORY=work, SERVICE_RESULT="signal", PATH=str(tmp_path))
            assert done.returncode == 0
            assert envoy.is_running()
            done = sweep("--unit=kumadp.service", RUNTIME_DIRECTORY=work, SERVICE_RESULT="success")
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"{work}: stopped envoy (pid {envoy.pid})\n"
            poll(lambda: not envoy.is_running() or envoy.status() == psutil.STATUS_ZOMBIE, what="the end of Envoy")
    leftovers = {path.name for path in (tmp_path / "work").iterdir()}
    assert not {name for name in leftovers if name.endswith(".sock")} | leftovers & {"state.json"}
    assert sweep("--work-dir", work).stdout == f"{work}: nothing was left running\n"


def test_the_directory_must_be_named() -> None:
    done = sweep(RUNTIME_DIRECTORY="")
    assert done.returncode == 64
    assert done.stderr == "Error: --name or --work-dir is required\n"


def test_an_empty_directory_needs_nothing(tmp_path: Path) -> None:
    done = sweep("--work-dir", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'none'}: no such directory\n")


def shared_memory() -> set[Path]:
    """Of every Envoy on this host with hot restart."""
    return set(Path("/dev/shm").glob("envoy_shared_memory_*"))


def test_the_next_run_removes_leftovers_in_a_temporary_directory(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="k") as temporary, workload("web") as app, XdsControlPlane() as plane:
        environ = {"TMPDIR": temporary}
        rig = Rig(tmp_path, plane, app)
        with rig.run(f"--work-dir={temporary}/kumadp-one", environment=environ) as daemon:
            rig.wait_ready(daemon)
            # It maps its own, which nobody else has.
            maps = Path(f"/proc/{daemon.envoy().pid}/maps").read_text()
            leftovers = {path for path in shared_memory() if str(path) in maps}
            envoy = daemon.envoy()
            daemon.process.kill()
            daemon.wait()
            poll(lambda: not envoy.is_running() or envoy.status() == psutil.STATUS_ZOMBIE, what="the end of Envoy")
        assert len(leftovers) == 1
        with rig.run(f"--work-dir={temporary}/kumadp-two", environment=environ) as daemon:
            rig.wait_ready(daemon)
            assert not leftovers & shared_memory()
            assert not Path(temporary, "kumadp-one").exists()
