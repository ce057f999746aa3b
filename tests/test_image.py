"""What the image is made of, without building it: pins with hashes, the list of what is installed, known advisories."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.needs import need_coredns

ROOT = Path(__file__).resolve().parent.parent
CI = ROOT / ".ci"
GO = (
    b"\0\0path\tgithub.com/coredns/coredns\nmod\tgithub.com/coredns/coredns\tv1.14.7\th1:" + b"A" * 43 + b"=\n"
    b"dep\tgithub.com/miekg/dns\tv1.1.68\th1:" + b"B" * 43 + b"=\nbuild\t-compiler=gc\n\0\0"
)


def listed(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(CI / "sbom"), *map(str, arguments)], capture_output=True, text=True, check=True, timeout=60
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_the_list_has_all_that_is_installed_and_nothing_else() -> None:
    document = listed(sys.executable)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    components = [document["metadata"]["component"], *document["components"]]
    python = {(each["name"], each["version"]) for each in components if each["purl"].startswith("pkg:pypi/")}
    there = {(re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower(), each.version) for each in distributions()}
    assert python == there
    assert document["metadata"]["component"]["name"] == "kumadp"
    envoy = next(each for each in components if each["name"] == "envoy")
    assert envoy["purl"] == f"pkg:github/envoyproxy/envoy@v{envoy['version']}"
    references = [each["bom-ref"] for each in components]
    assert len(set(references)) == len(references)
    assert {each["ref"] for each in document["dependencies"]} == set(references)
    assert all(set(each["dependsOn"]) <= set(references) for each in document["dependencies"])
    kumadp = next(each for each in document["dependencies"] if each["ref"].startswith("pkg:pypi/kumadp@"))
    assert any(each.startswith("pkg:pypi/msgspec@") for each in kumadp["dependsOn"])
    assert listed(sys.executable) == document, "the same environment gives the same list"


def test_the_list_has_the_modules_of_go_programs(tmp_path: Path) -> None:
    program = tmp_path / "coredns"
    program.write_bytes(b"\x7fELF" + bytes(5000) + GO + bytes(5000))
    document = listed(sys.executable, program)
    found = {each["purl"]: each for each in document["components"] if each["purl"].startswith("pkg:golang/")}
    assert set(found) == {
        "pkg:golang/github.com/coredns/coredns@v1.14.7",
        "pkg:golang/github.com/miekg/dns@v1.1.68",
    }
    assert found["pkg:golang/github.com/coredns/coredns@v1.14.7"]["type"] == "application"
    program.write_bytes(b"\x7fELF")
    done = subprocess.run(
        [sys.executable, str(CI / "sbom"), sys.executable, str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "does not name its modules" in done.stderr


def test_a_real_coredns_names_its_modules() -> None:
    document = listed(sys.executable, need_coredns())
    names = {each["name"] for each in document["components"]}
    assert {"github.com/coredns/coredns", "github.com/miekg/dns"} <= names


def test_the_image_installs_by_hash_alone() -> None:
    """Each `pip install` reads a lock with hashes, or the wheel that was built here, without an index."""
    for name in ("Dockerfile", ".ci/install-image"):
        text = (ROOT / name).read_text().replace("\\\n", " ")
        commands = [line for line in text.splitlines() if re.search(r"\bpip\b.* (?:install|download)\b", line)]
        assert commands
        for command in commands:
            assert "--require-hashes" in command or "--no-index" in command, command
    assert ".ci/install-image" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("extras", "lock"), [("envoy", "demo"), ("envoy,otel", "otel"), ("otel", "otel"), ("", "demo")]
)
def test_what_is_installed_follows_the_extras(tmp_path: Path, extras: str, lock: str) -> None:
    """The commands of the script, recorded."""
    tools, record = tmp_path / "tools", tmp_path / "record"
    tools.mkdir()
    for name in ("pip", "python"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"$RECORD"\n')
        (tools / name).chmod(0o755)
    environ = {"PATH": f"{tools}:/usr/bin:/bin", "RECORD": str(record), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [str(CI / "install-image"), str(tools / "python"), str(tmp_path / "target"), extras],
        env=environ, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (fetched,) = (line for line in record.read_text().splitlines() if " download " in line)
    assert fetched.endswith(f"-r .ci/locks/{lock}.txt")
    *_, last = record.read_text().splitlines()
    assert last.endswith(f" kumadp[{extras}]" if extras else " kumadp")
    assert "--no-index" in last


def test_known_vulnerabilities_are_found_in_a_copy_of_the_database(tmp_path: Path) -> None:
    folder = tmp_path / "vulns" / "some-package"
    folder.mkdir(parents=True)
    lock = tmp_path / "lock.txt"

    def check(version: str, *ranges: dict[str, str], withdrawn: bool = False) -> tuple[int, str]:
        package = {"ecosystem": "PyPI", "name": "Some_Package"}
        advisory: dict[str, Any] = {
            "id": "PYSEC-1",
            "aliases": ["CVE-1"],
            "details": "bad",
            "affected": [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": list(ranges)}]}],
        }
        if withdrawn:
            advisory["withdrawn"] = "2026-01-01T00:00:00Z"
        (folder / "PYSEC-1.yaml").write_text(yaml.safe_dump(advisory))
        lock.write_text(f"some-package=={version} \\\n    --hash=sha256:00\n")
        done = subprocess.run(
            [sys.executable, str(CI / "advisories"), str(tmp_path), str(lock)],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout

    span = ({"introduced": "0"}, {"fixed": "1.10.0"})
    assert check("1.9.2", *span) == (1, "some-package 1.9.2: PYSEC-1 CVE-1: bad\n")
    assert check("1.10.0", *span)[0] == 0
    assert check("1.9.2", *span, withdrawn=True)[0] == 0
    assert check("2.1", {"introduced": "2.0"}, {"last_affected": "2.1"})[0] == 1
    assert check("2.2", {"introduced": "2.0"}, {"last_affected": "2.1"})[0] == 0
    assert check("1.0", {"introduced": "2.0"})[0] == 0
