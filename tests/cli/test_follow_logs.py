"""`kumadp logs` of a data plane whose log goes to a file, to the journal, or to nowhere where it could be read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kumadp.core.status import Status
from tests.support.command import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.instances import Host

FIRST = [
    "2026-11-30T20:00:00.000Z INFO daemon: STARTING -> READY",
    "2026-11-30T20:00:01.000Z WARNING envoy/upstream: a host is gone",
    "2026-11-30T20:00:02.000Z DEBUG coredns/errors: a query",
]


def logging_to(output: str) -> Status:
    status = Status("web", "standalone")
    status.facts["log"] = {"output": output}
    return status


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kumadp.log"
    path.write_text("".join(f"{line}\n" for line in FIRST))
    return path


def test_the_last_lines_of_a_file(host: Host, file: Path) -> None:
    with host.instance("web", logging_to(str(file))):
        assert host.run("logs").stdout.splitlines() == FIRST
        assert host.run("logs", "-n", "2").stdout.splitlines() == FIRST[1:]
        assert host.run("logs", "envoy").stdout.splitlines() == FIRST[1:2]
        assert host.run("logs", "info").stdout.splitlines() == FIRST[:2]
        assert host.run("logs", "relay=loud").returncode == 64


def test_a_file_is_followed_over_a_rotation(host: Host, file: Path) -> None:
    with host.instance("web", logging_to(str(file))):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.isolated_kumadp", "logs", "--follow", "warning"],
            env={**os.environ, "XDG_RUNTIME_DIR": str(host.folder.parent), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # It is ignored where the tests were started in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"{FIRST[1]}\n"
            error = "2026-11-30T20:00:03.000Z ERROR relay: rejected"
            with file.open("a") as more:
                more.write(f"{FIRST[0]}\n{error[:30]}")
                more.flush()
                more.write(f"{error[30:]}\n")
            assert process.stdout.readline() == f"{error}\n"
            file.rename(file.with_suffix(".1"))
            entry = {"time": "t", "level": "error", "logger": "kumadp.relay", "message": "of a new file"}
            file.write_text(json.dumps(entry) + "\n")
            assert process.stdout.readline() == "t ERROR relay: of a new file\n"
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert process.stderr.read() == ""
        assert process.returncode == 0


def test_the_journal(host: Host, tmp_path: Path) -> None:
    entries = [
        {"MESSAGE": "relay: connected", "KUMADP_LOGGER": "kumadp.relay", "PRIORITY": "6", "__REALTIME_TIMESTAMP": "0"},
        {"MESSAGE": "Started.", "SYSLOG_IDENTIFIER": "systemd", "PRIORITY": "6", "__REALTIME_TIMESTAMP": "1000"},
    ]
    program = tmp_path / "journalctl"
    printed = "\n".join(map(json.dumps, entries))
    program.write_text(f"#!/bin/sh\necho \"$@\" >{tmp_path}/arguments\ncat <<'END'\n{printed}\nEND\n")
    program.chmod(0o755)
    with host.instance("web", logging_to("journal")):
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.isolated_kumadp", "logs", "--lines=7"],
            env={
                "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
                "XDG_RUNTIME_DIR": str(host.folder.parent),
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout.splitlines() == [
        "1970-01-01T00:00:00.000Z INFO relay: connected",
        "1970-01-01T00:00:00.001Z INFO systemd: Started.",
    ], done.stderr
    arguments = (tmp_path / "arguments").read_text().split()
    assert {"--output=json", "--lines=7"} <= set(arguments)
    assert "--follow" not in arguments


def test_a_file_that_cannot_be_read(host: Host, tmp_path: Path) -> None:
    with host.instance("web", logging_to(str(tmp_path / "none.log"))):
        done = host.run("logs")
    assert done.returncode == 79
    assert "none.log: no such file" in done.stderr


def test_nothing_runs(host: Host) -> None:
    assert host.run("logs").returncode == 79
