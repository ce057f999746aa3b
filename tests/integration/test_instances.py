"""The commands find a data plane of the same user wherever its directories are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.command import kumadp
from tests.support.daemon import Ports, run_kumadp, workload, write_mesh
from tests.support.needs import need_envoy, need_program
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.process


def run_here(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """As in another terminal: nothing of the data plane's environment is known."""
    return kumadp(*arguments, environment={"XDG_RUNTIME_DIR": "", **(environment or {})}, alone=False, deadline=60)


@pytest.mark.parametrize("kind", ["explicit", "temporary"])
def test_a_work_directory_of_any_kind(tmp_path: Path, kind: str) -> None:
    name = f"find-{kind}-{os.getpid()}"
    ports = Ports.take()
    prefix: tuple[str, ...] = ()
    arguments = ["--name", name]
    if kind == "temporary":
        arguments += ["--work-dir="]
        if os.geteuid() == 0:
            # Root could make /run/kumadp; here it cannot, as other users anywhere.
            unshare = need_program("unshare", "util-linux")
            prefix = (unshare, "--mount", "sh", "-c", 'mount -t tmpfs -o ro none /run && exec "$@"', "sh")
    with workload("web") as app, workload("backend") as backend:
        folder = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        web = json.loads((folder / "web.yaml").read_text())
        (folder / "web.yaml").write_text(json.dumps({**web, "name": name}))
        with run_kumadp(tmp_path, ports, "--standalone", str(folder), *arguments, prefix=prefix) as daemon:
            done = run_here("wait", f"--name={name}", "--timeout=30s")
            assert done.returncode == 0, done.stderr + daemon.output()
            done = run_here("status", f"--name={name}", "--output=json")
            assert json.loads(done.stdout)["pid"] == daemon.pid, done.stderr
            assert name in run_here("status").stdout
            for command in ("reload", "reexec", "log-level"):
                level = ("debug",) if command == "log-level" else ()
                done = run_here(command, *level, f"--name={name}")
                assert done.returncode == 0, (command, done.stderr)
                assert done.stdout.startswith(f"{name}: ")
            done = run_here("doctor", f"--name={name}", "--output=json")
            findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
            assert f"by the command line of pid {daemon.pid}" in findings["settings"]["text"], done.stdout
            assert findings["running"]["text"] == f"{name} is READY, pid {daemon.pid}"


def test_the_data_plane_of_the_demo() -> None:
    folder = Path(tempfile.mkdtemp(prefix="k"))
    environment = {**os.environ, "TMPDIR": str(folder), "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": str(need_envoy())}
    with (folder / "out").open("wb") as out:
        demo = subprocess.Popen(
            [sys.executable, "-m", "kumadp", "demo"], env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
        )
    try:

        def pids() -> set[int]:
            with_run = [process for process in psutil.Process(demo.pid).children() if "run" in process.cmdline()]
            return {process.pid for process in with_run}

        def is_listed() -> bool:
            assert demo.poll() is None, (folder / "out").read_text()
            lines = run_here("status", "--output=json").stdout.splitlines()
            phases = {process["pid"]: process["phase"] for process in map(json.loads, lines)}
            return any(phases.get(pid) == "READY" for pid in pids())

        poll(is_listed, what="the demo among those that run", deadline=60)
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.wait(30)
        shutil.rmtree(folder, ignore_errors=True)
