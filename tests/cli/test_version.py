"""`kumadp version`."""

from __future__ import annotations

import platform

import pytest

from kumadp import __version__
from tests.support.command import kumadp
from tests.support.needs import need_coredns, need_envoy


def test_the_version_of_kumadp() -> None:
    done = kumadp("version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")
    assert kumadp("--version").stdout == done.stdout


@pytest.mark.process
@pytest.mark.parametrize("flag", ["-a", "--detailed"])
def test_the_versions_of_its_programs(flag: str) -> None:
    envoy, coredns = need_envoy(), need_coredns()
    done = kumadp("version", flag, f"--binary-path={envoy}", f"--dns-coredns-path={coredns}")
    assert done.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == ["kumadp", "envoy", "coredns", "python"]
    assert lines["kumadp"] == __version__
    assert lines["envoy"].endswith(f" ({envoy})")
    assert lines["envoy"].split(".")[0] == "1"
    assert lines["coredns"].endswith(f" ({coredns})")
    assert lines["python"].startswith(platform.python_version())


def test_a_program_that_is_missing() -> None:
    done = kumadp("version", "-a", "--binary-path=/none/envoy", "--dns-coredns-path=/none/coredns")
    assert done.returncode == 0
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["envoy"].startswith("not found: ")
    assert lines["coredns"] == "not found"
