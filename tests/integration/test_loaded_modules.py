"""What a running daemon imports: one HTTP library, aiohttp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from tests.support.command import kumadp
from tests.support.daemon import Ports, get, run_kumadp, workload, write_mesh

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process

# An audit hook sees each import of the interpreter, whichever thread does it (PEP 578).
HOOK = """
import os, sys
log = open(os.environ["IMPORT_LOG"] + f".{os.getpid()}", "a", buffering=1)
sys.addaudithook(lambda event, args: event == "import" and print(args[0], file=log))
"""
OTHERS = {"httpx", "httpcore", "anyio", "h11", "requests", "urllib3"}


def imported(folder: Path, pid: int) -> set[str]:
    """Top-level names of what a process has imported."""
    return {name.partition(".")[0] for name in (folder / f"imports.{pid}").read_text().split()}


def test_a_standalone_daemon_imports_no_http_library_but_aiohttp(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        arguments = ("--standalone", str(mesh), "--name", "web", "--drain-time", "1s")
        environment = {"PYTHONPATH": str(hook), "IMPORT_LOG": str(tmp_path / "imports")}
        with run_kumadp(tmp_path, ports, *arguments, environment=environment) as daemon:
            daemon.wait_ready()
            assert get(ports.inbound) == (200, "web")
            assert get(ports.probes, "/app/healthz") == (200, "ok")
            for command in (("log-level", "debug"), ("reload",)):
                runtime = {"XDG_RUNTIME_DIR": daemon.environment["XDG_RUNTIME_DIR"]}
                assert kumadp(*command, environment=runtime).returncode == 0
            daemon.terminate()
            assert daemon.wait() == ExitCode.OK
    names = imported(tmp_path, daemon.pid)
    assert {"kumadp", "aiohttp"} <= names
    assert names & OTHERS == set()
