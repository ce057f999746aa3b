"""READMEs are true: their tables are those of the code, and each command in them is run, on ports of the test's own."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.cli import status
from kumadp.errors import EXIT_CODE_MEANING, ExitCode
from kumadp.settings.model import options_of
from tests.support.daemon import Ports, get, workload
from tests.support.file_lock import file_lock
from tests.support.needs import need_envoy
from tests.support.poll import poll
from tests.support.readmes import NAMES, ROOT, blocks, commands, files, lines_of, make_targets, rows_after
from tests.support.scripted_control_plane import TOKEN, ScriptedControlPlane, bootstrap_answer, static_bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterator

GUIDES = [name for name in NAMES if name != "README.md"]
EVERY_COMMAND = [line for name in NAMES for line in commands(name)]


def test_exit_codes_are_those_of_the_program() -> None:
    assert rows_after("exit codes") == [[str(int(code)), meaning] for code, meaning in EXIT_CODE_MEANING.items()]


def test_variables_without_a_flag_are_those_of_the_program() -> None:
    listed = [variable for cell, _ in rows_after("variables") for variable in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(name for o in options_of("run") if not o.flags for name in o.variables)


def test_options_are_those_of_the_program() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "kumadp", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "250"},
    ).stdout
    rows = rows_after("options")
    assert len(rows) > 10
    for flag, variable, _ in rows:
        assert re.search(rf"{re.escape(flag.strip('`'))}\b", shown), f"{flag} is no option of `kumadp run`"
        assert variable.strip("`") in shown, f"{variable} is no variable of `kumadp run`"


@pytest.mark.parametrize("target", sorted({found for name in NAMES for found in make_targets(name)}))
def test_make_targets_exist(target: str) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make here")
    done = subprocess.run([make, "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Reader:
    """A user who types the commands of README, in a folder with the files that it names."""

    def __init__(self, folder: Path, ports: Ports, application: int) -> None:
        self.folder = folder
        self.ports = ports
        self.daemon: subprocess.Popen[bytes] | None = None
        self.log = folder / "kumadp.log"
        self.numbers = {
            "18080": ports.inbound,
            "8080": application,
            "9901": ports.admin,
            "9902": ports.readiness,
            "9000": ports.probes,
        }
        (folder / "bin").mkdir()
        script = folder / "bin" / "kumadp"
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.support.isolated_kumadp "$@"\n')
        script.chmod(0o755)
        for name, text in files().items():
            (folder / name).write_text(self.on_our_ports(text))

    @property
    def environment(self) -> dict[str, str]:
        path = [str(self.folder / "bin"), os.environ.get("PATH", os.defpath)]
        return {
            **os.environ,
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.folder),
            "XDG_RUNTIME_DIR": str(self.folder),
            "STATE_DIRECTORY": str(self.folder / "state"),
            "KUMA_READINESS_PORT": str(self.ports.readiness),
            "KUMA_DATAPLANE_RUNTIME_BINARY_PATH": str(need_envoy()),
            "KUMA_DATAPLANE_RUNTIME_WORK_DIR": str(self.folder / "work"),
            "KUMA_DATAPLANE_DRAIN_TIME": "1s",
            "KUMA_DNS_CORE_DNS_PORT": str(self.ports.dns),
            "KUMA_DNS_ENVOY_DNS_PORT": str(self.ports.envoy_dns),
            "KUMA_DNS_PROMETHEUS_PORT": str(self.ports.dns_metrics),
        }

    def on_our_ports(self, text: str) -> str:
        return re.sub(r"\b(\d+)\b", lambda match: str(self.numbers.get(match[1], match[1])), text)

    def type(self, command: str) -> None:
        """Run a command; `kumadp run` stays until the next one, or the end, stops it."""
        words = shlex.split(self.on_our_ports(command))
        # The control socket of the data plane of these tests stands for that of the service.
        words = [str(self.control_socket()) if word.endswith(".control") else word for word in words]
        if words[:2] == ["kumadp", "run"]:
            self.stop()
            self._start(words)
            return
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=110
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}\n{self.output()}"

    def control_socket(self) -> Path:
        (path,) = self.folder.rglob("*.control")
        return path

    def _start(self, words: list[str]) -> None:
        with self.log.open("wb") as out:
            self.daemon = subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        # A reader takes a moment to open another terminal: the control socket is there before readiness answers.
        poll(self._lives, what="a first sign of life")

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _lives(self) -> bool:
        assert self.daemon is not None
        assert self.daemon.poll() is None, self.output()
        return get(self.ports.readiness, "/ready")[0] != 0

    def stop(self) -> None:
        """End a daemon that runs; it must end cleanly."""
        if self.daemon is None:
            return
        if self.daemon.poll() is None:
            self.daemon.terminate()
        try:
            code = self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            raise
        self.daemon = None
        assert code == ExitCode.OK, self.output()


@pytest.fixture
def reader() -> Iterator[Reader]:
    # pytest's own folders have names too long for Unix sockets.
    with tempfile.TemporaryDirectory(prefix="r") as name, workload("web") as application:
        opened = Reader(Path(name), Ports.take(), application.port)
        try:
            yield opened
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                opened.stop()


def test_several_data_planes_are_shown_as_the_program_shows_them() -> None:
    (shown,) = [text for kind, text in blocks("systemd/README.md") if kind == "text" and text.startswith("api ")]
    now, waits = time.time(), ["envoy: Envoy's admin does not answer yet"]
    statuses: list[dict[str, object]] = [
        {"name": "api", "phase": "STARTING", "why": "just started", "since": now - 3, "reasons": waits},
        {"name": "web-1", "phase": "READY", "why": "Envoy is LIVE with its listeners", "since": now - 72},
    ]
    assert "\n".join(status._lines(statuses, as_json=False, color=False)) + "\n" == shown


# Who runs the blocks of each kind.
KINDS = {
    "sh": "this file",
    "sh install": "this file, and what it installs tests/hosts/test_debian_package.py",
    "sh systemd": "tests/hosts/test_systemd.py",
    "sh container": "tests/hosts/test_container.py",
    "yaml": "the files of those who run commands",
    "dockerfile": "tests/hosts/test_container.py",
    "text": "",
}


def test_each_block_is_of_a_kind_that_is_tested() -> None:
    assert {kind for name in NAMES for kind, _ in blocks(name)} == KINDS.keys()


def test_what_is_installed_has_the_extras_that_are_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for name in NAMES for kind, block in blocks(name) if kind == "sh install" for line in lines_of(block)]
    assert lines
    for line in lines:
        (extra,) = re.fullmatch(r"pip install '(?:\.|kumadp)\[(\w+)\]'", line).groups()  # type: ignore[union-attr]
        assert extra in project["optional-dependencies"]


def test_no_command_is_of_a_kind_that_nobody_runs() -> None:
    kinds = (
        "make ",
        "kumadp demo ",
        "kumadp validate ",
        "kumadp run ",
        "kumadp wait ",
        "kumadp log-level ",
        "kumadp doctor ",
        "curl ",
    )
    whole = {"kumadp reload", "kumadp reexec", "kumadp status"}
    assert [line for line in EVERY_COMMAND if not line.startswith(kinds) and line not in whole] == []


def to_type(name: str) -> list[str]:
    """The commands of a README that need neither a control plane nor a clone."""
    return [line for line in commands(name) if not line.startswith("make ") and "--cp-address" not in line]


@pytest.mark.process
@pytest.mark.timeout(300)
def test_every_command_without_a_control_plane_works(reader: Reader) -> None:
    typed = to_type("README.md")
    assert any("--standalone" in line for line in typed)
    assert any(line.startswith("kumadp demo --check") for line in typed)
    with file_lock("demo"):
        for line in typed:
            reader.type(line)
    reader.stop()


@pytest.mark.process
@pytest.mark.parametrize("guide", [name for name in GUIDES if to_type(name)])
def test_every_command_of_a_guide_works_beside_a_data_plane(reader: Reader, guide: str) -> None:
    (started,) = [line for line in to_type("README.md") if line.startswith("kumadp run ")]
    reader.type(started)
    reader.type("kumadp wait --timeout=60s")
    for line in to_type(guide):
        reader.type(line)
    reader.stop()


@pytest.mark.process
def test_the_commands_for_a_control_plane_work(reader: Reader) -> None:
    answer = bootstrap_answer(static_bootstrap(reader.ports, int(reader.numbers["8080"])))
    with ScriptedControlPlane(answer) as plane:
        plane.write_ca(reader.folder / "ca.crt")
        reader.numbers["5678"] = plane.port
        (reader.folder / "token").write_text(TOKEN)
        (typed,) = [line for line in EVERY_COMMAND if "--cp-address" in line]
        reader.type(typed)
        reader.type("kumadp wait --timeout=60s")
        assert get(reader.ports.inbound) == (200, "web")
        assert plane.requests[0]["name"] == "web-1"
        assert plane.requests[0]["dataplaneToken"] == TOKEN
        assert TOKEN not in reader.output()
        reader.stop()
