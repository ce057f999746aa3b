"""Detects a bootstrap that has a field in two spellings.

protobuf's JSON form allows a field's name in camelCase and in snake_case, and Envoy merges a message that is given in
both. A reader of one spelling sees half of what Envoy runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kumadp.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

# Maps with keys of the user's choice, which are no field names.
_FREE_FORM = frozenset({"metadata", "dynamicParameters", "staticLayer", "filterMetadata", "labels"})
HINT = "Envoy would merge the two; keep one"


def json_name(name: str) -> str:
    """Return the camelCase name of a field in either spelling (protobuf's ToJsonName)."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def double_spellings(tree: Any) -> list[Problem]:
    """Return a Problem for each field that a mapping has in two spellings; linear in the tree's size."""
    return list(_double_spellings(tree, "", free=False))


def _double_spellings(tree: Any, path: str, *, free: bool) -> Iterator[Problem]:
    if isinstance(tree, list):
        for index, item in enumerate(tree):
            if isinstance(item, (dict, list)):
                yield from _double_spellings(item, f"{path}[{index}]", free=free)
    elif isinstance(tree, dict):
        seen: dict[str, str] = {}
        for key, value in tree.items():
            name = json_name(str(key))
            where = f"{path}.{key}" if path else str(key)
            if not free and name in seen:
                yield Problem(where, f"is also spelled {seen[name]}", HINT)
            seen[name] = str(key)
            if isinstance(value, (dict, list)):
                yield from _double_spellings(value, where, free=free or name in _FREE_FORM)
