"""Envoy's command line, its binary and its version."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.envoy.argv import REFUSED, check_extra, envoy_argv
from kumadp.envoy.binary import find_envoy
from kumadp.envoy.version import envoy_version, is_supported, supported_versions
from kumadp.errors import BinaryNotFound
from tests.support.needs import need_envoy

if TYPE_CHECKING:
    from collections.abc import Sequence


def argv(extra: Sequence[str] = (), *, components: str = "", concurrency: int = 0, drain: float = 30.9) -> list[str]:
    arguments = envoy_argv(
        Path("/opt/envoy"),
        Path("/run/kumadp/bootstrap.yaml"),
        drain_time=drain,
        log_level="info",
        component_log_level=components,
        concurrency=concurrency,
        extra=extra,
    )
    return list(arguments)


def test_the_command_line_is_kuma_dp_s() -> None:
    assert argv() == [
        *("/opt/envoy", "--config-path", "/run/kumadp/bootstrap.yaml"),
        *("--drain-time-s", "30", "--drain-strategy", "immediate", "--disable-hot-restart"),
        *("--log-level", "info", "--cpuset-threads"),
    ]


def test_threads_and_levels_are_set_and_the_user_s_arguments_come_last() -> None:
    arguments = argv(["--file-flush-interval-msec", "500"], components="upstream:debug", concurrency=3)
    assert arguments[-6:] == [
        *("--component-log-level", "upstream:debug", "--concurrency", "3"),
        *("--file-flush-interval-msec", "500"),
    ]
    assert "--cpuset-threads" not in arguments


@pytest.mark.parametrize("name", [*REFUSED, "-c", "-l", "-h"])
def test_arguments_that_could_undo_the_guard_are_refused_in_every_spelling(name: str) -> None:
    for extra in ([name, "x"], [f"{name}=x"], [f"{name} x"], ["--file-flush-interval-msec", "5", name]):
        (problem,) = check_extra(extra)
        assert problem.path == "--envoy-arg"
        assert problem.hint
    if not name.startswith("--"):
        assert check_extra([f"{name}x"])


# Judged one by one: what is new in another Envoy must be judged too before it is let through.
HARMLESS = {
    *("--allow-unknown-fields", "--allow-unknown-static-fields", "--reject-unknown-dynamic-fields"),
    *("--ignore-unknown-dynamic-fields", "--skip-deprecated-logs", "--local-address-ip-version"),
    *("--log-format", "--log-format-escaped", "--log-stacktrace-single-entry", "--enable-fine-grain-logging"),
    *("--service-cluster", "--service-node", "--service-zone", "--file-flush-interval-msec"),
    *("--file-flush-min-size-kb", "--enable-mutex-tracing", "--disable-extensions", "--enable-core-dump"),
    *("--stats-tag",),
}


def test_harmless_arguments_pass() -> None:
    assert check_extra([*HARMLESS, "--file-flush-interval-msec", "500", "--stats-tag", "a:b", "--stats-tag c:d"]) == []


def test_every_option_of_the_real_envoy_is_allowed_or_refused() -> None:
    help_text = subprocess.run([need_envoy(), "--help"], capture_output=True, text=True, check=False).stdout
    options = set(re.findall(r"^ +(?:-\w(?: <\w+>)?, +)?(--[a-z][a-z-]+)", help_text, re.MULTILINE))
    assert "--config-yaml" in options
    assert options <= HARMLESS | set(REFUSED)


@pytest.mark.process
def test_envoy_accepts_a_name_and_its_value_in_one_argument(tmp_path: Path) -> None:
    (tmp_path / "bootstrap.yaml").write_text("{}")
    wrong = "--config-yaml {no_such_field: 1}"
    command = [str(need_envoy()), "--config-path", str(tmp_path / "bootstrap.yaml"), "--mode", "validate", wrong]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "no_such_field" in done.stdout + done.stderr


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_path_is_used_unchanged(tmp_path: Path) -> None:
    binary = program(tmp_path / "my-envoy", "\x7fELF")
    assert find_envoy(str(binary)) == binary


def test_a_name_is_looked_up_on_the_path_and_then_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = need_envoy()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_envoy("envoy") == real
    binary = program(tmp_path / "envoy", "\x7fELF")
    assert find_envoy("envoy") == binary
    # The package puts a script of this name on the path: its binary is meant.
    program(tmp_path / "envoy", "#!/usr/bin/env python\nimport sys\nfrom envoy._main import main\n")
    assert find_envoy("envoy") == real
    # Any other script is the user's.
    program(tmp_path / "envoy", '#!/bin/sh\nulimit -c 0\nexec /opt/envoy "$@"\n')
    assert find_envoy("envoy") == tmp_path / "envoy"


@pytest.mark.parametrize("name", ["envoy-1.36", "./envoy", "Envoy"])
def test_a_named_envoy_has_no_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BinaryNotFound, match=f"no Envoy: {name} is not"):
        find_envoy(name)
    (tmp_path / name).mkdir()
    with pytest.raises(BinaryNotFound, match=f"no Envoy: {name} is "):
        find_envoy(name)


def test_the_error_of_a_missing_envoy_names_the_ways_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(BinaryNotFound, match="kumadp\\[envoy\\]"):
        find_envoy(str(tmp_path / "none"))
    (tmp_path / "plain").write_text("")
    with pytest.raises(BinaryNotFound, match="cannot be executed"):
        find_envoy(str(tmp_path / "plain"))


async def test_the_version_of_the_real_envoy() -> None:
    version_of_envoy = await envoy_version(need_envoy(), {})
    assert version_of_envoy.version.count(".") == 2
    assert len(version_of_envoy.build.split("/")) == 5


@pytest.mark.parametrize("text", ["echo hello", "exit 1", "echo version: a/b/c"])
async def test_a_program_that_is_no_envoy_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(BinaryNotFound, match="--binary-path"):
        await envoy_version(program(tmp_path / "envoy", f"#!/bin/sh\n{text}\n"), {})


async def test_a_version_query_has_a_deadline(tmp_path: Path) -> None:
    with pytest.raises(BinaryNotFound, match="did not end"):
        await envoy_version(program(tmp_path / "envoy", "#!/bin/sh\nsleep 60\n"), {"PATH": os.defpath}, 0.2)


@pytest.mark.parametrize(
    ("version", "compatible"),
    [
        # What the data planes of Kuma 2.8.8, 2.13.5 and 2.14.3 come with.
        ("1.30.11", True),
        ("1.36.6", True),
        ("1.38.2", True),
        ("1.38.9", True),
        ("1.38.3-dev", True),
        ("1.38.1", False),
        ("1.30.1", False),
        ("1.37.4", False),
        ("1.40.0", False),
        ("2.38.2", False),
        ("unknown", False),
        ("1.38", False),
        ("1.38.2.1", False),
    ],
)
def test_the_envoy_versions_of_kuma_are_supported(version: str, compatible: bool) -> None:
    assert is_supported(version) is compatible


def test_supported_versions_are_listed_with_their_kuma() -> None:
    assert "1.30.2 (Kuma 2.8)" in supported_versions()
    assert supported_versions().endswith("1.39.0 (Kuma 3.0)")
