"""Descriptors 0 to 2 that are closed, an empty environment, a directory that is gone: kumadp and its children run."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.errors import WorkDirError
from kumadp.host.work_dir import open_work_dir
from tests.support.daemon import Daemon, Ports, get, run_kumadp, workload, write_mesh
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterable

COMBINATIONS = [closed for count in range(4) for closed in itertools.combinations(("<&-", ">&-", "2>&-"), count)]


def shell(closed: Iterable[str]) -> tuple[str, ...]:
    """What to put before a command that is to have these closed."""
    return ("sh", "-c", f'exec "$@" {" ".join(closed)}', "sh")


def standard(pid: int) -> list[str]:
    """What a process has as descriptors 0 to 2."""
    return [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)]


@pytest.mark.parametrize("closed", COMBINATIONS, ids=" ".join)
@pytest.mark.parametrize(
    "arguments", [("version",), ("validate", "configs/dataplane.yaml"), ("run", "--standalone=/x")]
)
def test_every_command_ends_as_it_does_with_them(closed: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "kumadp", *arguments]
    expected = 65 if arguments[0] == "run" else 0
    done = subprocess.run([*shell(closed), *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == expected
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == (expected == 0 and ">&-" not in closed)
    assert bool(done.stderr) == (expected == 65 and "2>&-" not in closed)


@pytest.mark.parametrize("where", ["/dev/full", "/dev/null"])
def test_an_output_that_takes_nothing_is_exit_71(where: str) -> None:
    redirected = f"1>{where}" if where == "/dev/full" else f"1<{where}"
    command = [*shell([redirected]), sys.executable, "-m", "kumadp", "version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 71
    assert done.stderr.startswith("Error: standard output cannot be written: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.attack
@pytest.mark.process
@pytest.mark.parametrize("closed", COMBINATIONS, ids=" ".join)
def test_a_run_with_its_children_and_its_next_program(tmp_path: Path, closed: tuple[str, ...]) -> None:
    ports = Ports.take()
    with workload("web") as app:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        log = tmp_path / "own.log"
        arguments = ("--standalone", str(mesh), "--name=web", f"--log-output-path={log}")
        with run_kumadp(tmp_path, ports, *arguments, prefix=shell(closed)) as daemon:
            daemon.wait_ready()
            assert get(ports.inbound) == (200, "web")
            _check_standard(daemon, closed)
            daemon.process.send_signal(signal.SIGUSR1)
            poll(lambda: "went on in" in log.read_text() or log.read_text().count("settings: ") == 2, what="the next")
            daemon.wait_ready()
            _check_standard(daemon, closed)
            daemon.terminate()
            assert daemon.wait() == 0
        assert "Traceback" not in log.read_text() + daemon.output()


def _check_standard(daemon: Daemon, closed: tuple[str, ...]) -> None:
    names = ("<&-", ">&-", "2>&-")
    for name, what in zip(names, standard(daemon.pid), strict=True):
        assert what == "/dev/null" if name in closed else "socket:" not in what
    own, *outputs = standard(daemon.envoy().pid)
    assert own == "/dev/null"
    assert all(output.startswith("pipe:") for output in outputs)


@pytest.mark.attack
@pytest.mark.process
@pytest.mark.parametrize("kind", ["empty", "strange"])
def test_a_run_in_another_environment(tmp_path: Path, kind: str) -> None:
    """No PATH, no HOME, no locale; bytes that are no text, and variables that are meant for Python."""
    ports = Ports.take()
    script = "import os, sys\nkept = {k: v for k, v in os.environb.items() if k.startswith((b'KUMA_', b'XDG_'))}\n"
    if kind == "strange":
        script += (
            "kept |= {b'LANG': b'xx_YY.nothing', b'A\\xff': b'\\xfe', b'PYTHONASYNCIODEBUG': b'1',"
            " b'PYTHONIOENCODING': b'latin-1', b'PYTHONWARNINGS': b'error', b'HOME': b'/nowhere', b'TERM': b'\\xff'}\n"
        )
    script += "os.mkdir(sys.argv[1]); os.chdir(sys.argv[1]); os.rmdir(sys.argv[1])\n"
    script += "os.execve(sys.argv[2], sys.argv[2:], kept)\n"
    with workload("web") as app:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, app.port)
        prefix = (sys.executable, "-c", script, str(tmp_path / "gone"))
        with run_kumadp(tmp_path, ports, "--standalone", str(mesh), "--name=web", prefix=prefix) as daemon:
            daemon.wait_ready()
            assert get(ports.inbound) == (200, "web")
            assert Path(f"/proc/{daemon.pid}/cwd").readlink().name.startswith("gone")
            daemon.process.send_signal(signal.SIGUSR1)
            poll(lambda: daemon.output().count("settings: ") == 2, what="the next program")
            daemon.wait_ready()
            daemon.terminate()
            assert daemon.wait() == 0, daemon.output()
        assert "Traceback" not in daemon.output()


@pytest.mark.parametrize(
    "flag", ["--work-dir", "--state-dir", "--standalone", "--name", "--cp-address", "--drain-time"]
)
def test_bytes_that_are_no_text_are_refused_by_the_name_of_their_flag(flag: str) -> None:
    command = [os.fsencode(sys.executable), b"-m", b"kumadp", b"run", os.fsencode(flag) + b"=/tmp/\xff\xfe"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 78
    assert flag.encode() in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_runtime_directory_whose_name_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(WorkDirError, match="not UTF-8"):
        open_work_dir("web", "", "", "", {"RUNTIME_DIRECTORY": os.fsdecode(os.fsencode(tmp_path) + b"/\xff")})
