"""The status of a running data plane has the documented form and is true, with and without a control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kumadp.daemon.status_schema import StatusReport
from tests.support.command import kumadp
from tests.support.daemon import Daemon, Ports, workload, write_mesh
from tests.support.poll import poll
from tests.support.rig import NAME, open_rig
from tests.support.standalone import run_standalone
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


def run_status(daemon: Daemon, *arguments: str) -> Any:
    """What `kumadp status` prints for it."""
    return kumadp("status", *arguments, environment={"XDG_RUNTIME_DIR": daemon.environment["XDG_RUNTIME_DIR"]})


def report(daemon: Daemon) -> StatusReport:
    """Strictly decoded: what is not documented is an error."""
    done = run_status(daemon, "--output=json")
    assert done.stdout, done.stderr
    return msgspec.json.decode(done.stdout, type=StatusReport)


def test_standalone(tmp_path: Path) -> None:
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        folder = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        with run_standalone(folder, ports) as daemon:
            status = report(daemon)
            assert (status.name, status.mesh, status.mode, status.phase) == ("web", "default", "standalone", "READY")
            envoy = daemon.envoy()
            assert status.children["envoy"].pid == envoy.pid
            assert status.children["envoy"].started == pytest.approx(envoy.create_time(), abs=1)
            assert run_status(daemon).returncode == 0
            daemon.kill_envoy()
            poll(lambda: report(daemon).children["envoy"].restarts == 1, what="the restart")
            daemon.wait_ready()
            text = run_status(daemon).stdout
            assert "READY for " in text
            assert "1 restart" in text
            assert "envoy ended with signal 9 (KILL) after" in text


def test_with_a_control_plane(tmp_path: Path) -> None:
    with XdsControlPlane() as plane, open_rig(tmp_path, plane) as rig, rig.run() as daemon:
        rig.wait_ready(daemon)
        status = report(daemon)
        assert status.name == NAME
        assert status.control_plane == plane.url
        assert isinstance(status.relay, msgspec.Struct)
        assert status.relay.state == "open"
        assert status.relay.received is not None
        text = run_status(daemon).stdout
        assert f"control plane  {plane.url} (Kuma 2): connected to " in text
        assert "last configuration " in text
        plane.break_clusters("backend")
        poll(lambda: "last rejection" in run_status(daemon).stdout, what="the rejection")
        rejection = report(daemon).relay
        assert isinstance(rejection, msgspec.Struct)
        assert rejection.last_rejection is not None
        assert rejection.last_rejection.type.endswith("Cluster")
