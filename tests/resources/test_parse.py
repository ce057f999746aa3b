"""The parser of resources: spellings, unknown fields, values of each kind, and problems with their lines."""

from __future__ import annotations

from typing import Any

import pytest

from kumadp.resources.fields import DATAPLANE, Field
from kumadp.resources.parse import Parser, join


def parsed(text: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """Tree, problems and notes."""
    parser = Parser("web.yaml")
    root = parser.compose(text)
    tree = parser.message(root, DATAPLANE, "") if root is not None else {}
    return tree, list(map(str, parser.problems)), list(map(str, parser.unknown))


def test_other_spellings_of_a_name() -> None:
    tree, problems, notes = parsed("networking:\n  advertised_address: 192.0.2.1\n  INBOUND: []\n")
    assert tree == {"networking": {"advertisedAddress": "192.0.2.1", "inbound": []}}
    assert problems == notes == []


def test_a_name_in_two_spellings_is_given_twice() -> None:
    tree, problems, _ = parsed("networking:\n  advertisedAddress: 192.0.2.1\n  advertised_address: 192.0.2.2\n")
    assert tree == {"networking": {"advertisedAddress": "192.0.2.1"}}
    assert problems == ["web.yaml:3: networking.advertisedAddress: is given twice"]


def test_an_unknown_field_is_kept_and_noted() -> None:
    tree, problems, notes = parsed("networkin: {a: 1}\nfuture: [1, 2.5, yes, null, x]\n")
    assert tree == {"networkin": {"a": 1}, "future": [1, 2.5, True, None, "x"]}
    assert problems == []
    assert notes == [
        "web.yaml:1: networkin: is not a known field; it is passed on unchanged (did you mean networking?)",
        "web.yaml:2: future: is not a known field; it is passed on unchanged",
    ]


def test_notes_have_a_limit() -> None:
    _, _, notes = parsed("".join(f"unknown{number}: 1\n" for number in range(300)))
    assert len(notes) == 100


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a\n", "web.yaml:1: is not a mapping (a resource has type, mesh and name)"),
        ("", "web.yaml: is not a mapping (a resource has type, mesh and name)"),
        ("networking: 1\n", "web.yaml:1: networking: must be a mapping, not 1"),
        ("networking: {inbound: {}}\n", "web.yaml:1: networking.inbound: must be a list, not a mapping"),
        ("name: [a]\n", "web.yaml:1: name: must be a string, not a list"),
        ("labels: [a]\n", "web.yaml:1: labels: must be a mapping of strings, not a list"),
        ("labels: {a: 1}\n", 'web.yaml:1: labels.a: must be a string, not 1 (write "1")'),
        ("? [a]\n: 1\n", 'web.yaml:1: [""]: has a key that is not a string'),
        ("networking:\n  admin: {port: x}\n", "web.yaml:2: networking.admin.port: must be a whole number, not 'x'"),
        ("networking:\n  admin: {port: 70000}\n", "networking.admin.port: 70000 is out of range (0 to 65535)"),
    ],
)
def test_a_problem_with_its_line(text: str, problem: str) -> None:
    _, problems, _ = parsed(text)
    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize("text", ["DELEGATED", "delegated", "0"])
def test_an_enum_by_name_in_any_case_or_by_number(text: str) -> None:
    tree, problems, _ = parsed(f"networking: {{gateway: {{type: {text}}}}}\n")
    assert (tree, problems) == ({"networking": {"gateway": {"type": "DELEGATED"}}}, [])


def test_values_that_are_absent_or_invalid_are_none() -> None:
    parser = Parser("x")
    root = parser.compose("a: ~\nb: maybe\nc: -1\nd: 1 minute\n")
    assert root is not None
    null, boolean, number, duration = (node for _, node in root.value)
    assert parser.value(null, Field("a", "text"), "a") is None
    assert parser.value(boolean, Field("b", "boolean"), "b") is None
    assert parser.value(number, Field("c", "integer", minimum=0), "c") is None
    assert parser.value(duration, Field("d", "duration"), "d") is None
    assert [problem.path for problem in parser.problems] == ["b", "c", "d"]


def test_field_paths() -> None:
    assert join("", "name") == "name"
    assert join("networking", "address") == "networking.address"
    assert join("labels", "kuma.io/zone") == 'labels["kuma.io/zone"]'
