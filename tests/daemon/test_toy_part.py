"""What a new feature gets from one package and one line: a real daemon with a toy part in it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.daemon.control_client import query_status, send_request
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.daemon import Daemon, Ports, run_kumadp, workload, write_mesh
from tests.support.poll import poll
from tests.support.processes import is_alive
from tests.support.toy import run as toy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.process

WITH_TOY = (sys.executable, str(Path(toy.__file__)))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def arguments(tmp_path: Path) -> Iterator[tuple[Ports, tuple[str, ...], Path]]:
    ports, settings = Ports.take(), tmp_path / "settings.yaml"
    settings.write_text("dataplane: {drainTime: 1s}\n")
    with workload("web") as app, workload("backend") as backend:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        keep = ("--on-parent-death", "keep", "--config", str(settings))
        yield ports, ("--standalone", str(mesh), "--name", "web", *keep), settings


def socket_of(daemon: Daemon) -> Path:
    return control_socket_path("web", daemon.environment)


def status(daemon: Daemon) -> dict[str, Any]:
    return query_status(socket_of(daemon), 10.0)


def toy_of(daemon: Daemon) -> int:
    """The pid of the toy; 0 if it does not run."""
    return status(daemon)["children"].get("toy", {}).get("pid") or 0


def test_a_package_and_a_line_make_a_feature(tmp_path: Path, arguments: tuple[Ports, tuple[str, ...], Path]) -> None:
    ports, flags, settings = arguments
    environment = {"PYTHONPATH": str(ROOT)}
    with run_kumadp(tmp_path, ports, *flags, prefix=WITH_TOY, environment=environment) as daemon:
        daemon.wait_ready()
        poll(lambda: "waiting: toy: the toy does not run yet" in daemon.output(), what="a condition of readiness")
        assert status(daemon)["toy"] == {"programs": 1, "drain_time": 1.0}
        first = toy_of(daemon)
        # Supervised, and recorded for adoption.
        os.kill(first, signal.SIGKILL)
        poll(lambda: toy_of(daemon) not in {0, first}, what="a restarted child")
        second = toy_of(daemon)
        poll(lambda: f'"pid": {second}' in (tmp_path / "work" / "state.json").read_text(), what="a record of it")
        # A reload applies its option.
        settings.write_text("dataplane: {drainTime: 3s}\n")
        code, answer = send_request(socket_of(daemon), "POST", "/reload", 60.0)
        assert (code, "the toy has 3 s" in answer["said"]) == (200, True)
        assert status(daemon)["toy"]["drain_time"] == 3.0
        # A re-execution keeps the process, and what was handed over.
        assert send_request(socket_of(daemon), "POST", "/reexec", 60.0)[0] == 200
        poll(lambda: status(daemon).get("reexec", {}).get("count") == 1, what="the next program", deadline=60)
        poll(lambda: toy_of(daemon) == second, what="the adopted child", deadline=60)
        assert status(daemon)["toy"] == {"programs": 2, "drain_time": 3.0}
        daemon.process.kill()
        daemon.wait()
        assert is_alive(second)
    with run_kumadp(tmp_path, ports, *flags, prefix=WITH_TOY, environment=environment) as daemon:
        daemon.wait_ready()
        assert f"toy (pid {second}) of an earlier kumadp is adopted" in daemon.output()
        assert toy_of(daemon) == second
        daemon.terminate()
        assert daemon.wait() == 0
        # Whoever reaps it now is not kumadp.
        poll(lambda: not is_alive(second), what="the end of the child")
