"""Fields of a message in protobuf's JSON form, which takes a name in camelCase and in snake_case."""

from __future__ import annotations

from typing import Any


def get(tree: Any, *names: str) -> Any:
    """The value at a path of camelCase names, written so or in snake_case; None where there is none."""
    for name in names:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(name, tree.get(snake(name)))
    return tree


def items(value: Any) -> list[Any]:
    """The values of a repeated field as Envoy 1.40 reads it: one value is a list of one, lists in lists are one list.

    What is no mapping within is left out; it is for Envoy to refuse.
    """
    if isinstance(value, dict):
        return [value]
    return [one for inner in value for one in items(inner)] if isinstance(value, list) else []


def put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set a field by its camelCase name, in whichever way it is already written."""
    tree[snake(name) if snake(name) in tree else name] = value


def drop(tree: dict[str, Any], name: str) -> None:
    """Take a field away by its camelCase name."""
    tree.pop(name, None)
    tree.pop(snake(name), None)


def snake(name: str) -> str:
    """``portValue`` as ``port_value``."""
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)
