"""`kumadp log-level` on a running data plane: its own lines, a part's, and Envoy's, over reloads and restarts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.daemon.control_client import query_status
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.command import kumadp
from tests.support.daemon import Daemon, Ports, get, workload, write_mesh
from tests.support.poll import poll
from tests.support.standalone import run_standalone

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        folder = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        with run_standalone(folder, ports) as running:
            yield running


def order(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return kumadp(*arguments, environment={"XDG_RUNTIME_DIR": daemon.environment["XDG_RUNTIME_DIR"]})


def envoy_level(daemon: Daemon, logger: str) -> str:
    """Return the level that Envoy's admin reports."""
    text = poll(lambda: get(daemon.ports.admin, "/logging", method="POST")[1], what="Envoy's levels")
    return next((line.split(": ")[1] for line in text.splitlines() if line.strip().startswith(f"{logger}: ")), "")


def status(daemon: Daemon) -> dict[str, Any]:
    return query_status(control_socket_path("web", daemon.environment))


def log_section(daemon: Daemon) -> dict[str, Any]:
    section: dict[str, Any] = status(daemon)["log"]
    return section


def test_levels_change_and_stay_until_they_are_reset(daemon: Daemon) -> None:
    assert (log_section(daemon)["level"], log_section(daemon)["envoy_level"], log_section(daemon)["changed"]) == (
        "info",
        "info",
        False,
    )
    done = order(daemon, "log-level", "warning", "envoy.upstream=debug", "standalone=debug")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "web: kumadp warning, envoy warning, envoy.upstream debug, standalone debug\n"
    assert log_section(daemon)["components"] == {"envoy.upstream": "debug", "standalone": "debug"}
    assert "log level      kumadp warning, envoy warning, envoy.upstream debug" in order(daemon, "status").stdout
    for event in ("at once", "reload", "death"):
        if event == "reload":
            assert order(daemon, "reload").returncode == 0
        if event == "death":
            daemon.kill_envoy()
            poll(lambda: status(daemon)["children"]["envoy"]["restarts"] == 1, what="the restart")
            daemon.wait_ready()
        poll(lambda: envoy_level(daemon, "upstream") == "debug", what=f"upstream: {event}")
        poll(lambda: envoy_level(daemon, "http") == "warning", what=f"http: {event}")
    assert order(daemon, "log-level", "--reset").stdout == "web: kumadp info, envoy info\n"
    assert envoy_level(daemon, "upstream") == envoy_level(daemon, "http") == "info"
    assert log_section(daemon)["changed"] is False


def test_levels_survive_a_reexecution(daemon: Daemon) -> None:
    assert order(daemon, "log-level", "warning", "envoy.upstream=debug", "standalone=debug").returncode == 0
    for _ in range(2):
        assert order(daemon, "log-level", "warning").returncode == 0
    before, length = log_section(daemon), len(daemon.output())
    assert "more like this" not in daemon.output()
    assert order(daemon, "reexec").returncode == 0
    poll(lambda: status(daemon).get("reexec", {}).get("count") == 1, what="the next kumadp", deadline=30)
    daemon.wait_ready()
    assert {**log_section(daemon), "folded": 0, "dropped": 0} == {**before, "folded": 0, "dropped": 0}
    # Suppressed lines were summarised before the log got another writer.
    assert "standalone debug (2 more like this in " in daemon.output()[length:]
    # What it logs before it has the levels follows its settings.
    again = daemon.output()[length:].partition("log level, as before: ")[2]
    assert again.startswith("kumadp warning, envoy warning, envoy.upstream debug, standalone debug\n")
    assert " INFO daemon" not in again
    poll(lambda: status(daemon)["children"].get("envoy"), what="the adopted Envoy")
    daemon.kill_envoy()
    poll(lambda: status(daemon)["children"]["envoy"]["restarts"] == 1, what="the restart")
    daemon.wait_ready()
    poll(lambda: envoy_level(daemon, "upstream") == "debug", what="upstream of the next Envoy")
    assert order(daemon, "log-level", "--reset").stdout == "web: kumadp info, envoy info\n"


def test_own_lines_follow(daemon: Daemon) -> None:
    assert order(daemon, "log-level", "error").returncode == 0
    length = len(daemon.output())
    assert order(daemon, "reload").returncode == 0
    assert " INFO daemon" not in daemon.output()[length:]
    assert order(daemon, "log-level", "info").returncode == 0
    assert order(daemon, "reload").returncode == 0
    poll(lambda: " INFO daemon: reload" in daemon.output()[length:], what="a line again")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["loud"], 79, "'loud' is no level (one of trace, debug"),
        (["nothing=debug"], 79, "'nothing' is no part of kumadp"),
        (["envoy.nothing=debug"], 79, "Envoy does not know nothing=debug"),
        ([], 64, "give levels, or --reset"),
        (["debug", "--reset"], 64, "give levels, or --reset"),
    ],
)
def test_invalid_requests_change_nothing(daemon: Daemon, arguments: list[str], code: int, text: str) -> None:
    before = log_section(daemon)
    done = order(daemon, "log-level", *arguments)
    assert done.returncode == code
    assert text in done.stderr
    assert {**log_section(daemon), "folded": 0} == {**before, "folded": 0}


def test_json_lines_have_child_component_and_epoch(tmp_path: Path) -> None:
    ports = Ports.take()
    with workload("web") as app, workload("backend") as backend:
        folder = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        log = tmp_path / "log.json"
        with run_standalone(folder, ports, more=(f"--log-output-path={log}", "--log-format=auto")) as daemon:
            assert order(daemon, "reload").returncode == 0
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    envoys = [line for line in lines if line.get("child") == "envoy" and "component" in line]
    assert {line.get("epoch") for line in envoys} >= {0, 1}
    assert not any(line["message"].startswith("[20") for line in envoys)
