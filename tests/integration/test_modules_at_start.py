"""What is imported before the request for the bootstrap leaves, and before READY: lists that may only shrink.

Modules of kumadp and packages of others, by their names; those of Python differ by its version. The lists are in
``tests/data/modules_at_start.json``; ``late`` has those that come when READY does, before it or after it.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from tests.support.daemon import Ports, run_kumadp, workload, write_mesh
from tests.support.poll import poll

pytestmark = pytest.mark.process

LISTS = Path(__file__).resolve().parent.parent / "data" / "modules_at_start.json"
# An audit hook sees each import of the interpreter, whichever thread does it, and each connect(2) (PEP 578).
HOOK = """
import os, sys
log = open(os.environ["IMPORT_LOG"] + f".{os.getpid()}", "a", buffering=1)
def hook(event, args):
    if event == "import":
        print(args[0], file=log)
    elif event == "socket.connect" and isinstance(args[1], tuple):
        print("connect", args[1][1], file=log)
sys.addaudithook(hook)
"""
TOO_MANY = """
imported at the start, and not listed: {names}
Import it in the function that needs it, or later in a thread: each module costs every start about 1 ms of processor
time, and memory for as long as kumadp runs. If the first answer through the mesh needs it, add it to {file}, and write
in the commit what needs it, and what it costs (python -X importtime).
"""


def environment(folder: Path) -> dict[str, str]:
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    return {"PYTHONPATH": str(hook), "IMPORT_LOG": str(folder / "imports")}


def names_of(lines: list[str]) -> set[str]:
    """Modules of kumadp, and packages that are not Python's."""
    modules = [line for line in lines if not line.startswith("connect ")]
    names = {name if name.startswith("kumadp") else name.partition(".")[0] for name in modules}
    own = {"sitecustomize", "usercustomize"}
    return {name for name in names if not name.startswith("_") and name not in sys.stdlib_module_names | own}


def compare(kind: str, imported: set[str]) -> None:
    listed = set(json.loads(LISTS.read_text())[kind])
    assert not imported - listed, TOO_MANY.format(names=", ".join(sorted(imported - listed)), file=LISTS.name)
    # Which packages the others import depends on their versions.
    gone = {name for name in listed - imported if name.startswith("kumadp")}
    assert not gone, f"not imported at the start any more, remove it from {LISTS.name}: {', '.join(sorted(gone))}"


def lines(folder: Path, pid: int) -> list[str]:
    file = folder / f"imports.{pid}"
    return file.read_text().splitlines() if file.exists() else []


def test_modules_before_the_request_for_the_bootstrap(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plane:
        port = plane.getsockname()[1]
        arguments = (f"--cp-address=http://127.0.0.1:{port}", "--mesh=default", "--name=web-1")
        with run_kumadp(tmp_path, Ports.take(), *arguments, environment=environment(tmp_path)) as daemon:
            poll(lambda: f"connect {port}" in lines(tmp_path, daemon.pid), what="a request for the bootstrap")
            seen = lines(tmp_path, daemon.pid)
    before = seen[: seen.index(f"connect {port}")]
    compare("request", names_of(before))


def test_modules_before_ready_without_a_control_plane(tmp_path: Path) -> None:
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        arguments = ("--standalone", str(mesh), "--name", "web", "--drain-time", "1s")
        with run_kumadp(tmp_path, ports, *arguments, environment=environment(tmp_path)) as daemon:
            daemon.wait_ready()
            imported = names_of(lines(tmp_path, daemon.pid))
    late = json.loads(LISTS.read_text())["late"]
    assert "aiohttp" not in imported
    compare("standalone", imported - set(late))
