"""`kumadp validate`: all problems of all files, as text and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import jsonschema
import pytest
import yaml

from tests.support.command import ROOT, kumadp

if TYPE_CHECKING:
    from pathlib import Path

GOOD = (ROOT / "configs/dataplane-kuma3.yaml").read_text(encoding="utf-8")
BAD = GOOD.replace("protocol: http", "protocol: htp").replace("port: 9901", "port: 99010")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "worse.yaml").write_text("type: [")
    return tmp_path


def test_all_is_well(folder: Path) -> None:
    done = kumadp("validate", "good.yaml", "good.yaml", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 valid\n", "")


def test_every_problem_of_every_file(folder: Path) -> None:
    done = kumadp("validate", "bad.yaml", "good.yaml", "worse.yaml", "none.yaml", cwd=folder)
    assert (done.returncode, done.stderr) == (65, "")
    lines = done.stdout.splitlines()
    protocol = next(number for number, line in enumerate(BAD.splitlines(), 1) if "kuma.io/protocol: htp" in line)
    files = sorted(line.split(":")[1].strip() for line in lines)
    assert files == ["bad.yaml", "bad.yaml", "bad.yaml", "none.yaml", "worse.yaml"]
    assert any(
        line.startswith(f'error: bad.yaml:{protocol}: networking.inbound[0].tags["kuma.io/protocol"]: ')
        for line in lines
    )


def test_json_output(folder: Path) -> None:
    done = kumadp("validate", "-o", "json", "bad.yaml", cwd=folder)
    assert done.returncode == 65
    message = json.loads(done.stdout)
    assert message["valid"] is False
    assert {problem["path"] for problem in message["problems"]} == {
        'networking.inbound[0].tags["kuma.io/protocol"]',
        "networking.inbound[0].protocol",
        "networking.admin.port",
    }
    for problem in message["problems"]:
        assert set(problem) == {"path", "message", "hint", "file", "line"}
        assert problem["file"] == "bad.yaml"
        assert problem["line"] > 1
    well = kumadp("validate", "--output=json", "good.yaml", cwd=folder)
    assert (well.returncode, json.loads(well.stdout)) == (0, {"valid": True, "problems": [], "notes": []})


def test_notes_are_not_errors(folder: Path) -> None:
    (folder / "odd.yaml").write_text(GOOD + "colour: red\n")
    done = kumadp("validate", "odd.yaml", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("note: odd.yaml:")
    assert "colour" in done.stdout


def test_the_judgement_of_one_version(folder: Path) -> None:
    text = GOOD.replace("protocol: http #", "#")
    (folder / "v.yaml").write_text(text)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "kuma.io/protocol" in line)
    loss = "has no effect: without the field protocol this inbound is plain TCP (add protocol: http beside the tags)"
    done = kumadp("validate", "--kuma=3.0", "v.yaml", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f'note: v.yaml:{line}: networking.inbound[0].tags["kuma.io/protocol"]: {loss}',
        f"note: v.yaml:{line - 2}: networking.inbound[0].tags: has no effect (policies and services select by labels)",
        "1 valid",
    ]
    assert kumadp("validate", "--kuma=2.14", "v.yaml", cwd=folder).stdout == "1 valid\n"


def test_what_one_version_refuses_is_a_note_without_it(folder: Path) -> None:
    (folder / "v.yaml").write_text(GOOD.replace("        kuma.io/service: web\n", ""))
    assert kumadp("validate", "--kuma=3.0", "v.yaml", cwd=folder).returncode == 0
    refused = kumadp("validate", "--kuma=2.14", "-o", "json", "v.yaml", cwd=folder)
    assert refused.returncode == 65
    (problem,) = json.loads(refused.stdout)["problems"]
    assert (problem["path"], problem["message"]) == ('networking.inbound[0].tags["kuma.io/service"]', "is missing")
    done = kumadp("validate", "v.yaml", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("note: v.yaml:")
    assert "is missing; Kuma 2.8, 2.13 and 2.14 refuse that" in done.stdout


def test_a_version_that_is_none(folder: Path) -> None:
    done = kumadp("validate", "--kuma=2.7", "good.yaml", cwd=folder)
    assert done.returncode == 64
    assert "'2.7' is not one of '2.8', '2.13', '2.14', '3.0'" in done.stderr


@pytest.mark.parametrize(("text", "code"), [(GOOD, 0), (BAD, 65), ("", 65)])
def test_standard_input(text: str, code: int) -> None:
    done = kumadp("validate", "-", stdin=text)
    assert done.returncode == code
    assert ("stdin" in done.stdout) is (code != 0)


def test_standard_input_that_is_no_text(folder: Path) -> None:
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    done = kumadp("validate", "binary.yaml", cwd=folder)
    assert (done.returncode, done.stdout) == (65, "error: binary.yaml: is not UTF-8 text\n")
    done = kumadp("validate", "-", stdin="\udcff\udcfe\x00")
    assert (done.returncode, done.stdout) == (65, "error: stdin: is not UTF-8 text\n")


def test_a_file_without_end_is_too_large(folder: Path) -> None:
    done = kumadp("validate", "/dev/zero")
    assert (done.returncode, done.stderr) == (65, "")
    assert "larger than 1024 KiB" in done.stdout


def test_the_variables_of_a_template(folder: Path) -> None:
    (folder / "t.yaml").write_text(GOOD.replace("name: web-1", "name: {{n}}").replace("192.168.0.10", "{{{a.b}}}"))
    assert kumadp("validate", "t.yaml", "-v", "n=web-1,a.b=10.0.0.1", cwd=folder).returncode == 0
    assert kumadp("validate", "t.yaml", "--dataplane-var", "n=web-1", cwd=folder).returncode == 65


def test_the_schema_accepts_valid_resources_only() -> None:
    done = kumadp("validate", "--schema")
    assert done.returncode == 0
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name in (
        "dataplane",
        "dataplane-kuma3",
        "gateway",
        "zone-ingress",
        "zone-egress",
        "zone-proxy",
        "standalone/web",
    ):
        validator.validate(yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8")))
    assert not validator.is_valid(yaml.safe_load(BAD))
