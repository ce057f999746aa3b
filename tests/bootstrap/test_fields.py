"""Fields of protobuf's JSON form in both spellings, and the refusal of a field that is given twice."""

from __future__ import annotations

from typing import Any

import pytest

from kumadp.bootstrap.fields import drop, get, items, put, snake
from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.spelling import double_spellings, json_name
from kumadp.errors import BootstrapError


@pytest.mark.parametrize("name", ["portValue", "port_value"])
def test_a_value_is_read_in_either_spelling(name: str) -> None:
    tree = {"socketAddress": {name: 0}}
    assert get(tree, "socketAddress", "portValue") == 0
    assert get({"socket_address": tree["socketAddress"]}, "socketAddress", "portValue") == 0


@pytest.mark.parametrize("tree", [None, [], "x", {}, {"a": None}, {"a": [{"b": 1}]}])
def test_a_path_without_a_value_is_none(tree: Any) -> None:
    assert get(tree, "a", "b") is None


def test_camel_case_comes_first() -> None:
    assert get({"portValue": 1, "port_value": 2}, "portValue") == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 1}, [{"a": 1}]),
        ([{"a": 1}, [{"b": 2}, [{"c": 3}]]], [{"a": 1}, {"b": 2}, {"c": 3}]),
        ([1, "x", None, {"a": 1}], [{"a": 1}]),
        (None, []),
        ("x", []),
    ],
)
def test_repeated_fields_are_read_as_envoy_reads_them(value: Any, expected: list[Any]) -> None:
    assert items(value) == expected


def test_a_field_is_set_in_the_spelling_of_the_tree_and_removed_in_both() -> None:
    tree: dict[str, Any] = {"port_value": 1}
    put(tree, "portValue", 2)
    assert tree == {"port_value": 2}
    put(tree, "apiType", "GRPC")
    assert tree == {"port_value": 2, "apiType": "GRPC"}
    tree["portValue"] = 3
    drop(tree, "portValue")
    assert tree == {"apiType": "GRPC"}


NAMES = {"portValue": "port_value", "a": "a", "xffNumTrusted": "xff_num_trusted"}


@pytest.mark.parametrize(("camel", "words"), NAMES.items())
def test_names_in_both_spellings(camel: str, words: str) -> None:
    assert snake(camel) == words
    assert json_name(words) == camel
    assert json_name(camel) == camel


def test_a_field_in_two_spellings_is_a_problem_with_its_path() -> None:
    tree = {"admin": {"address": {}, "accessLog": []}, "staticResources": {"listeners": [{"a_b": 1, "aB": 2}]}}
    (problem,) = double_spellings(tree)
    assert problem.path == "staticResources.listeners[0].aB"
    assert problem.message == "is also spelled a_b"


@pytest.mark.parametrize("name", ["metadata", "labels", "filter_metadata", "filterMetadata", "staticLayer"])
def test_keys_of_the_user_s_choice_have_no_second_spelling(name: str) -> None:
    assert double_spellings({"node": {name: {"a_b": 1, "aB": {"c_d": 1, "cD": 2}}}}) == []


def test_the_parser_refuses_a_field_in_two_spellings() -> None:
    with pytest.raises(BootstrapError, match="is also spelled"):
        parse_bootstrap(b'{"static_resources": {}, "staticResources": {}}')
