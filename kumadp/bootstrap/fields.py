"""Fields of a message in protobuf's JSON form, which allows names in camelCase and in snake_case."""

from __future__ import annotations

from typing import Any


def get(tree: Any, *names: str) -> Any:
    """Return the value at a path of camelCase names, whichever spelling the tree has; None if there is no value."""
    for name in names:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(name, tree.get(snake(name)))
    return tree


def items(value: Any) -> list[Any]:
    """Return a repeated field as Envoy 1.40 reads it: a single value is a list, nested lists are one list.

    Items that are no mappings are left out; Envoy refuses them.
    """
    if isinstance(value, dict):
        return [value]
    return [item for inner in value for item in items(inner)] if isinstance(value, list) else []


def put(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set a field by its camelCase name, in the spelling that the tree has."""
    tree[snake(name) if snake(name) in tree else name] = value


def drop(tree: dict[str, Any], name: str) -> None:
    """Remove a field by its camelCase name."""
    tree.pop(name, None)
    tree.pop(snake(name), None)


def snake(name: str) -> str:
    """Return ``port_value`` for ``portValue``."""
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)
