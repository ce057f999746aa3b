"""Whole runs in which every warning of Python is an error, with whatever Python and libraries run the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from kumadp.host.socket_names import kuma_socket, metrics
from tests.support.access_log_policy import log_to
from tests.support.daemon import get, get_at
from tests.support.file_lock import file_lock
from tests.support.log_sink import Sink
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.rig import NAME, NODE, SOON

if TYPE_CHECKING:
    from tests.support.loaded_rig import LoadedRig
    from tests.support.xds.plane import XdsControlPlane

pytestmark = [pytest.mark.process, pytest.mark.linger(0.0)]

STRICT = {"PYTHONWARNINGS": "error"}
# A warning in a finalizer is printed, whatever the filters are.
COMPLAINT = re.compile(r"^.*(?:\b[A-Z]\w*Warning\b|Exception ignored|never awaited|never retrieved|Traceback).*$", re.M)


def test_a_data_plane_of_a_mesh(loaded_rig: LoadedRig, plane: XdsControlPlane) -> None:
    """Names, probes, metrics, access logs, a reload, a re-execution, a dead Envoy, a drain."""
    rig = loaded_rig
    rig.with_probes()
    with Sink() as sink, rig.up(environment=STRICT, dns=True) as daemon:
        log_to(plane.mesh(NODE), rig.work, NAME, sink.address)
        assert get_at(f"unix:{kuma_socket(rig.work, metrics(NAME, 'default'))}", "/")[0] == 200
        assert "serves after" in rig.reload(daemon)
        rig.reexec(daemon)
        rig.kill_envoy(daemon)
        assert get(rig.ports.probes, "/app/healthz")[0] == 200
        plane.drop_connections()
        rig.wait_state(daemon, "open")
        poll(lambda: plane.stream(NODE), what="the stream", deadline=SOON)
        for command in ("status", "version", "doctor"):
            done = subprocess.run(
                [sys.executable, "-m", "kumadp", command],
                env=dict(daemon.environment), capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert COMPLAINT.findall(done.stdout + done.stderr) == []
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK
        assert COMPLAINT.findall(daemon.output()) == []


def test_the_demo() -> None:
    with tempfile.TemporaryDirectory(prefix="d") as folder, file_lock("demo"):
        done = subprocess.run(
            [sys.executable, "-m", "kumadp", "demo", "--check"],
            env={**os.environ, **STRICT, "TMPDIR": folder, "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": str(need_envoy())},
            capture_output=True, text=True, check=False, timeout=110,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    assert re.findall(r"^(?!ok ).+", done.stdout, re.MULTILINE) == []
