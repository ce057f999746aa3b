"""The settings file, read in one pass over its YAML nodes, which collects values with their lines and all problems."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import yaml

from kumadp import yamltext
from kumadp.errors import Problem
from kumadp.settings.given import GivenValue, parse
from kumadp.settings.model import options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kumadp.settings.option import Option
    from kumadp.settings.values import Kind

# Limits of hints for unknown keys, each of which is a comparison with all keys.
_MOST_HINTS = 20
_LONGEST_HINTED = 100
BOUNDS = yamltext.Bounds(size=1 << 20, depth=20)
_ALL_KEYS = "configs/kumadp.yaml lists all keys"
_SHAPE: dict[Kind, str] = {
    "text": "a string",
    "integer": "a whole number",
    "boolean": "true or false",
    "duration": "a duration like 1m30s",
    "texts": "a list of strings",
    "integers": "a list of whole numbers",
    "pairs": "a mapping of names to strings",
}


def read_settings(text: str, source: str, problems: list[Problem]) -> dict[str, GivenValue]:
    """Return the values of the file by field name; a key without a value counts as not given.

    ``source`` names the file in ``problems``, which everything that is wrong is appended to.
    """
    try:
        root = yamltext.compose(text, BOUNDS)
    except (yaml.YAMLError, ValueError) as error:
        problems.append(Problem("", f"not YAML: {yamltext.reason(error)}", file=source, line=yamltext.line(error)))
        return {}
    reader = _Reader(source, problems)
    if root is not None:
        reader.walk(root, "")
    return reader.values


class _Reader:
    def __init__(self, source: str, problems: list[Problem]) -> None:
        self._source = source
        self._problems = problems
        self._by_key = {option.key: option for option in options() if option.key}
        self._groups = {key[:end] for key in self._by_key for end, character in enumerate(key) if character == "."}
        self._hints = 0
        self.values: dict[str, GivenValue] = {}

    def walk(self, node: yaml.Node, path: str) -> None:
        option = self._by_key.get(path)
        if _is_null(node):
            return
        if option is not None:
            value = self._read(option, node)
            if value is not None:
                self.values[option.field] = value
        elif isinstance(node, yaml.MappingNode):
            self._walk_mapping(node, path)
        else:
            self._add_problem(path, "is not a mapping", node)

    def _walk_mapping(self, node: yaml.MappingNode, path: str) -> None:
        seen: set[str] = set()
        for key, value in yamltext.pairs(node):
            below = f"{path}.{key.value}" if path else str(key.value)
            if below in seen:
                self._add_problem(below, "is given twice", key, "remove one of them")
            elif below in self._by_key or below in self._groups:
                self.walk(value, below)
            else:
                self._add_problem(below, "is not a setting", key, self._suggest(below))
            seen.add(below)

    def _suggest(self, path: str) -> str:
        self._hints += 1
        if self._hints > _MOST_HINTS or len(path) > _LONGEST_HINTED:
            return _ALL_KEYS
        keys = (*self._by_key, *self._groups)
        last = path.rpartition(".")[2].lower()
        same_end = [key for key in self._by_key if key.rpartition(".")[2].lower() == last]
        similar = same_end[:1] or difflib.get_close_matches(path, keys, 1)
        return f"did you mean {similar[0]}?" if similar else _ALL_KEYS

    def _read(self, option: Option, node: yaml.Node) -> GivenValue | None:
        origin = f"file {self._source}:{node.start_mark.line + 1}: {option.key}"
        if isinstance(node, yaml.ScalarNode):
            return parse(option, str(node.value), origin, self._problems) if node.value else None
        if isinstance(node, yaml.SequenceNode) and option.kind in {"texts", "integers"} and _are_scalars(node.value):
            texts = tuple(str(item.value) for item in node.value)
            if option.kind == "texts":
                return GivenValue(texts, origin)
            return parse(option, ",".join(texts), origin, self._problems)
        if isinstance(node, yaml.MappingNode) and option.kind == "pairs":
            pairs = list(yamltext.pairs(node))
            if _are_scalars(value for _, value in pairs):
                return GivenValue({str(key.value): str(value.value) for key, value in pairs}, origin)
        self._add_problem(option.key, f"is not {_SHAPE[option.kind]}", node)
        return None

    def _add_problem(self, path: str, message: str, node: yaml.Node, hint: str = "") -> None:
        self._problems.append(Problem(path, message, hint, self._source, node.start_mark.line + 1))


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _are_scalars(nodes: Iterable[yaml.Node]) -> bool:
    return all(isinstance(node, yaml.ScalarNode) for node in nodes)
