"""The real program: invalid input has its exit code and one clear line for each problem, without a traceback."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kumadp.settings.model import options_of
from tests.support.command import ROOT, kumadp
from tests.support.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.settings.option import Command


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["rnu"], 64, "Error: no command 'rnu' (did you mean run?)"),
        (["xyz"], 64, "Error: no command 'xyz' (one of run, wait, "),
        (["run", "--nme=x"], 64, "Error: No such option"),
        (["run", "extra"], 64, "Error: Got unexpected extra argument (extra)"),
        (["run", "--config-dir"], 64, "Error: Option '--config-dir' requires an argument"),
        (["--log-levle=off", "run"], 64, "Error: No such option"),
        (["validate"], 64, "Error: no file to check (kumadp validate FILE...)"),
        (["validate", "-v", "a", "-"], 64, "Error: --dataplane-var 'a' is not name=value"),
        (["validate", "--output=xml", "-"], 64, "Error: Invalid value for '-o' / '--output'"),
        (["wait", "--check-frequency=1"], 78, "Error: --check-frequency: '1' is not a duration"),
        (["wait", "--check-frequency=0s"], 78, "Error: --check-frequency: 0s is too small (at least 1ms)"),
        (
            ["wait", "--url=https://localhost/ready"],
            78,
            "Error: --url: 'https://localhost/ready' is not an http address",
        ),
        (["wait", "--url=http://10.0.0.1/ready"], 78, "Error: --url: 'http://10.0.0.1/ready' is not an http address"),
        (
            ["wait", "--url=http://localhost:99999/"],
            78,
            "Error: --url: 'http://localhost:99999/' is not an http address",
        ),
        (["wait", "--url=http://[::1/ready"], 78, "Error: --url: 'http://[::1/ready' is not an http address"),
        (["wait", "--name=a", "--url=http://localhost/"], 78, "Error: --url and --name: exclude each other"),
        (["wait", "--name=a", "--unix-socket=/a"], 78, "Error: --name and --unix-socket: exclude each other"),
        (["run", "--name=a", "--mesh=b", "--envoy-arg=--mode"], 78, "Error: --envoy-arg: --mode is not allowed"),
        (["run", "--config=/none"], 78, "Error: --config: /none: No such file or directory (give a readable YAML file"),
        (["run", "--config=/"], 78, "Error: --config: /: Is a directory"),
        (["run", "--config=/dev/zero", "--name=a", "--mesh=b"], 78, "not YAML: larger than 1024 KiB"),
        (
            ["run", "--name=a", "--mesh=b", "--transparent-proxy-config=/none,/b"],
            78,
            "Error: --transparent-proxy-config: /none: No such file or directory",
        ),
        (["run", "-d=/none"], 65, "Error: /none: cannot be read: No such file or directory"),
        (["run", "-d", "/none"], 65, "Error: /none: cannot be read: No such file or directory"),
        (["run", "--standalone=/none"], 65, "Error: /none"),
        (["run", "--dataplane=type: Datplane"], 65, "Error: --dataplane:1: type: 'Datplane' is not known"),
        (
            ["run", "--name=a", "--mesh=b", "--log-output-path=/none/a"],
            78,
            "Error: --log-output-path: /none/a: No such",
        ),
        (["run", "--name=a", "--mesh=b", "--binary-path=/none"], 72, "/none"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], code: int, expected: str) -> None:
    done = kumadp(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert expected in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) == 1 or code == 72, done.stderr


def test_each_invalid_setting_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text("log:\n  levle: info\n")
    done = kumadp(
        *("--log-max-size=0", "run", "--config=k.yaml", "--drain-time=30", "-v", "x"),
        environment={"KUMA_READINESS_PORT": "x", "KUMA_DATAPLANE_NAME": ""},
        cwd=tmp_path,
    )
    assert done.returncode == 78
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        "k.yaml:2",
        "--log-max-size",
        "--drain-time",
        "KUMA_READINESS_PORT",
        "-v",
        "--name",
        "--mesh",
    ]


def test_a_path_with_a_nul(tmp_path: Path) -> None:
    (tmp_path / "k.yaml").write_text('dataplaneRuntime: {resourcePath: "a\\0b", workDir: "\\0", envoyArgs: ["\\0"]}\n')
    done = kumadp("run", "--config=k.yaml", cwd=tmp_path)
    assert done.returncode == 78
    assert [line.partition("dataplaneRuntime.")[2] for line in done.stderr.splitlines()] == [
        f"{name}: contains a NUL character (remove it)" for name in ("resourcePath", "envoyArgs", "workDir")
    ]


def test_a_proxy_type_that_does_not_match(tmp_path: Path) -> None:
    (tmp_path / "dp.yaml").write_text((ROOT / "configs/dataplane.yaml").read_text())
    done = kumadp("run", "-d", "dp.yaml", "--proxy-type=egress", cwd=tmp_path)
    assert done.returncode == 78
    assert done.stderr == (
        "Error: --proxy-type: 'egress' does not match the given Dataplane (remove it, or set it to dataplane)\n"
    )


def test_without_a_command_help_is_printed_on_stderr() -> None:
    done = kumadp()
    assert (done.returncode, done.stdout) == (64, "")
    assert "Usage:" in done.stderr
    assert "Exit codes:" in done.stderr


@pytest.mark.parametrize("place", ["before", "after"])
def test_log_flags_in_front_of_and_after_the_command(tmp_path: Path, place: str) -> None:
    log = tmp_path / "wait.log"
    flags = ["--log-output-path", str(log), "--log-format=json"]
    wait = ["wait", "--timeout=0s", f"--url=http://127.0.0.1:{free_port()}/"]
    done = kumadp(*([*flags, *wait] if place == "before" else [*wait, *flags]))
    assert done.returncode == 75
    assert len(done.stderr.splitlines()) == 1
    assert json.loads(log.read_text())["message"].startswith("waiting: http://127.0.0.1:")


def test_a_flag_after_the_command_overrides_the_same_in_front_of_it() -> None:
    done = kumadp("--log-level=off", "wait", "--log-level=loud", "--timeout=0s")
    assert "Error: --log-level: 'loud' is not known" in done.stderr


@pytest.mark.parametrize("command", ["run", "wait"])
def test_help_names_everything(command: Command) -> None:
    for columns in ("80", "200"):
        done = kumadp(command, "--help", environment={"COLUMNS": columns})
        assert done.returncode == 0
        # Lines may be broken between words and after hyphens, never within a name that one would search for.
        words = "".join(done.stdout.split())
        for option in options_of(command):
            for name in (*option.flags, *option.variables):
                assert re.search(rf"(?<![\w-]){name}(?![\w-])", done.stdout), name
            assert f"(default: {option.default_text})" in option.help_text
            assert ("(accepted, but without effect)" in option.help_text) is not option.effective
            assert "".join(option.help_text.split()) in words


@pytest.mark.parametrize("command", ["run", "wait", "status", "doctor", "log-level", "validate", "demo", "version"])
def test_each_command_has_help(command: str) -> None:
    done = kumadp(command, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 3
    assert f" {command} " in kumadp("--help").stdout


@pytest.mark.parametrize("command", ["validate", "status"])
def test_a_reader_that_closes_the_pipe(command: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kumadp", command, "--schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == -signal.SIGPIPE


def test_an_interrupted_wait_is_not_ready(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kumadp", "wait", "--name=never"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    assert process.stderr is not None
    assert "waiting: never" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == -signal.SIGINT, "`kumadp wait && start` must not go on"
    assert process.stderr.read().strip() == ""
    process.stderr.close()


def test_problems_of_a_transparent_proxy_file_on_standard_input_name_the_key() -> None:
    arguments = ("run", "--name=a", "--mesh=b", "--transparent-proxy-config=-")
    ended = kumadp(*arguments, stdin="redirect:\n  inbound: {port: 70000}\n")
    assert ended.returncode == 78
    assert ended.stderr.startswith("Error: -: redirect.inbound.port: 70000 is not a port")


def test_run_alone_names_the_ways_to_begin() -> None:
    done = kumadp("run")
    assert (done.returncode, done.stdout) == (78, "")
    for way in ("kumadp run --standalone=", "kumadp run --cp-address=", "kumadp demo", "kumadp migrate"):
        assert way in done.stderr
    # Whoever gives anything gets what is wrong with it.
    for arguments, environment in ((["--mesh=x"], {}), ([], {"KUMA_DATAPLANE_MESH": "x"})):
        done = kumadp("run", *arguments, environment=environment)
        assert (done.returncode, len(done.stderr.splitlines())) == (78, 1)
        assert "neither a Dataplane nor a name is given" in done.stderr


def on_terminal(*arguments: str) -> str:
    """What a command prints if standard error is a terminal."""
    parent, child = pty.openpty()
    with os.fdopen(child, "wb") as terminal:
        subprocess.run(
            [sys.executable, "-m", "kumadp", *arguments],
            stderr=terminal,
            stdout=subprocess.DEVNULL,
            check=False,
            cwd=ROOT,
        )
    with os.fdopen(parent, "rb") as written:
        # It fits into the buffer; at the end Linux reports an error instead of an end.
        return os.read(written.fileno(), 65536).decode()


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (("status", "--name=nobody-has-this-name"), "See: kumadp status "),
        (("log-level",), ""),
        (("sweep",), "See: kumadp sweep --help"),
        (("run", "--drain-time=x", "--name=a", "--mesh=b"), "See: kumadp run --help"),
        (("run", "--name=a", "--mesh=b", "--binary-path=/none"), "See: kumadp doctor"),
        (("run", "-d", "/none.yaml"), "See: kumadp validate FILE"),
    ],
)
def test_on_a_terminal_an_error_names_the_command_that_shows_more(arguments: tuple[str, ...], more: str) -> None:
    lines = on_terminal(*arguments).splitlines()
    seen = [line for line in lines if line.startswith("See: ")]
    assert [line.startswith(more) for line in seen] == ([True] if more else [])
