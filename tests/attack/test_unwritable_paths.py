"""Hosts where hardly anything can be written: read-only file systems, full disks, folders that cannot be made."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import Daemon, Ports, get, is_listening, run_kumadp, workload, write_mesh
from tests.support.loaded_rig import open_loaded_rig
from tests.support.poll import poll
from tests.support.ports import free_ports
from tests.support.readonly import fill, free, inside, make_read_only, read_only_but, small_disk
from tests.support.rig import NODE
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.attack, pytest.mark.process]


def kumadp(daemon: Daemon, *arguments: str, **environ: str) -> tuple[int, str]:
    """Exit code and output of a command of kumadp, where that one runs."""
    done = inside(daemon.pid, sys.executable, "-m", "kumadp", *arguments, environment={**daemon.environment, **environ})
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("shared_memory", [True, False])
def test_the_work_directory_is_all_that_can_be_written(tmp_path: Path, shared_memory: bool) -> None:
    """Envoy's hot restart needs /dev/shm: without it a reload is refused with the reason, and everything else works."""
    ports, work = Ports.take(), tmp_path / "work"
    work.mkdir()
    writable = ("/dev/shm",) if shared_memory else ()
    with workload("web") as app:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        prefix = read_only_but(f"{work}=20m", *writable)
        arguments = ("--standalone", str(mesh), "--name=web")
        with run_kumadp(tmp_path, ports, *arguments, f"--state-dir={work}/state", prefix=prefix) as daemon:
            daemon.wait_ready()
            assert inside(daemon.pid, "touch", "/tmp/x", str(tmp_path / "x"), environment={}).returncode != 0
            environ = {"RUNTIME_DIRECTORY": str(work)}
            assert kumadp(daemon, "wait", "--timeout=10s", **environ)[0] == 0
            assert kumadp(daemon, "status", **environ)[0] == 0
            code, output = kumadp(daemon, "reload", **environ)
            if shared_memory:
                assert code == 0, output
            else:
                assert code == 79
                assert "/dev/shm cannot be written: Read-only file system" in output
            assert kumadp(daemon, "log-level", "debug", **environ)[0] == 0
            envoy = daemon.envoy().pid
            code, output = kumadp(daemon, "reexec", **environ)
            assert code == 0, output
            assert (daemon.envoy().pid, get(ports.inbound)) == (envoy, (200, "web"))
            code, output = kumadp(daemon, "doctor", *arguments, **environ)
            assert "temporary" not in output
            daemon.terminate()
            assert daemon.wait() == 0
            assert "bug in kumadp" not in daemon.output()


@pytest.mark.parametrize("size", ["4k", "8k", "12k", "16k", "24k"])
def test_a_disk_that_is_full_at_the_start_is_exit_71_with_the_path(tmp_path: Path, size: str) -> None:
    """Whatever file fails, it is named, and no Envoy is left."""
    ports, work = Ports.take(), tmp_path / "work"
    work.mkdir()
    with workload("web") as app:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        prefix = read_only_but(f"{work}={size}", "/dev/shm")
        arguments = ("--standalone", str(mesh), "--name=web", f"--state-dir={work}/state")
        with run_kumadp(tmp_path, ports, *arguments, prefix=prefix) as daemon:
            poll(lambda: daemon.process.poll() is not None or get(ports.readiness, "/ready")[0] == 200, what="an end")
            if daemon.process.poll() is None:
                daemon.terminate()
                assert daemon.wait() == 0
            else:
                assert daemon.wait() == 71, daemon.output()
                assert str(work) in daemon.output().splitlines()[-1]
                assert "No space left on device" in daemon.output().splitlines()[-1]
            assert "bug in kumadp" not in daemon.output()
            assert "Traceback" not in daemon.output()
            assert not is_listening(ports.inbound)


@pytest.mark.parametrize("broken", ["full", "read-only"])
def test_a_disk_that_cannot_be_written_refuses_a_reload_and_a_reexecution_and_the_old_ones_serve(broken: str) -> None:
    with XdsControlPlane() as plane, open_loaded_rig(plane) as rig:
        rig.work.mkdir()
        prefix = small_disk(rig.work, "1m")
        with rig.up(f"--state-dir={rig.work}/state", prefix=prefix) as daemon:
            envoy, count = rig.the_envoy(), rig.count(daemon)
            if broken == "full":
                fill(daemon, rig.work)
                why = "No space left on device"
            else:
                make_read_only(daemon, rig.work)
                why = "Read-only file system"
            for what in ("reload", "reexec"):
                done = rig.run_command(daemon, what)
                assert done.returncode == 79, (what, done.stdout, done.stderr)
                assert str(rig.work) in done.stderr, what
                assert why in done.stderr or "cannot be written" in done.stderr, what
                assert "bug in kumadp" not in done.stderr
            assert (rig.the_envoy(), rig.count(daemon)) == (envoy, count)
            assert rig.serves()
            assert rig.status(daemon)["phase"] == "READY"
            if broken == "full":
                free(daemon, rig.work)
            else:
                assert inside(daemon.pid, "umount", str(rig.work), environment=dict(os.environ)).returncode == 0
            assert "serves" in rig.reload(daemon)
            rig.reexec(daemon)
            daemon.terminate()
            assert daemon.wait() == 0
            assert "bug in kumadp" not in daemon.output()
            assert "never retrieved" not in daemon.output()


def test_a_state_directory_that_is_full_costs_the_copy_and_the_records_alone() -> None:
    """Each is a warning in the status, which goes once there is room again."""
    with XdsControlPlane() as plane, open_loaded_rig(plane) as rig:
        rig.state.mkdir(mode=0o700)
        with rig.up(prefix=small_disk(rig.state, "64k")) as daemon:
            fill(daemon, rig.state)
            rig.kill_envoy(daemon)
            assert "No space left on device" in rig.wait_warning(daemon, "crash records")
            (port,) = free_ports(1)
            plane.mesh(NODE).outbound(port, "another", ("192.0.2.1", 80))
            assert "No space left on device" in rig.wait_warning(daemon, "last good configuration")
            assert rig.serves()
            free(daemon, rig.state)
            rig.kill_envoy(daemon)
            # Nothing changes any more: what could not be written is written all the same.
            poll(lambda: rig.status(daemon)["concerns"] == [], what="no warning")
