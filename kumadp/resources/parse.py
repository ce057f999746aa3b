"""The parser of resources: one pass over YAML nodes that normalises names, keeps unknown fields, and lists problems."""

from __future__ import annotations

import difflib
import re
from typing import Any

import yaml

from kumadp import yamltext
from kumadp.durations import parse_nanoseconds
from kumadp.errors import Problem
from kumadp.resources.fields import Field, Message

MAX_TEXT = 1 << 20
BOUNDS = yamltext.Bounds(size=MAX_TEXT, depth=60)
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTEGER = re.compile(r"[+-]?[0-9]+")
# Limits of notes about unknown fields, and of hints for them: each hint is a comparison with all names.
_MAX_NOTES = 100
_MAX_HINTS = 20
_MAX_HINTED_LENGTH = 64


class Parser:
    """Parser of one document.

    ``lines`` maps field paths to lines; ``unknown`` lists unknown fields. ``respelled`` has the values in other case
    than Kuma's by field path, each with Kuma's.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.unknown: list[Problem] = []
        self.lines: dict[str, int] = {}
        self.respelled: dict[str, tuple[str, str]] = {}

    def compose(self, text: str) -> yaml.MappingNode | None:
        """Return the root node; None, after adding a problem, if it is not one YAML document, too large or too deep."""
        try:
            root = yamltext.compose(text, BOUNDS)
        except (yaml.YAMLError, ValueError) as error:
            problem = Problem(
                "", f"is not YAML or JSON: {yamltext.reason(error)}", "", self.source, yamltext.line(error)
            )
            self.problems.append(problem)
            return None
        if not isinstance(root, yaml.MappingNode):
            self._fail("", "is not a mapping", root.start_mark if root else None, "a resource has type, mesh and name")
            return None
        return root

    def message(self, node: yaml.Node, message: Message, path: str) -> dict[str, Any]:
        """Return the mapping of ``node`` with known names normalised."""
        tree: dict[str, Any] = {}
        if not isinstance(node, yaml.MappingNode):
            self._fail(path, f"must be a mapping, not {_shown(node)}", node.start_mark)
            return tree
        for key_node, value_node in yamltext.pairs(node):
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            field = message.lookup(key)
            name = field.name if field else key
            below = join(path, name)
            if not key or name in tree:
                self._fail(
                    below or path, "is given twice" if key else "has a key that is not a string", key_node.start_mark
                )
                continue
            self.lines[below] = key_node.start_mark.line + 1
            if field is None:
                if not message.open:
                    self._unknown(message, key, below, key_node.start_mark)
                tree[name] = self.free(value_node, below)
            else:
                value = self.value(value_node, field, below)
                if value is not None:
                    tree[name] = value
        return tree

    def value(self, node: yaml.Node, field: Field, path: str) -> Any:
        """Return the value of a known field; None if it is absent or invalid."""
        if _is_null(node):
            return None
        if field.kind == "message":
            assert isinstance(field.of, Message)  # noqa: S101
            return self.message(node, field.of, path)
        if field.kind == "list":
            return self._list(node, field, path)
        if field.kind == "tags":
            return self._tags(node, path)
        if field.kind == "mapping" and not isinstance(node, yaml.MappingNode):
            self._fail(path, f"must be a mapping, not {_shown(node)}", node.start_mark)
            return None
        if field.kind in {"mapping", "free"}:
            return self.free(node, path)
        if not isinstance(node, yaml.ScalarNode):
            self._fail(path, f"must be {_article(field.kind)}, not {_shown(node)}", node.start_mark)
            return None
        return self._scalar(node, field, path)

    def free(self, node: yaml.Node, path: str) -> Any:
        """Return any value as JSON types."""
        if isinstance(node, yaml.MappingNode):
            return {str(key.value): self.free(value, join(path, str(key.value))) for key, value in yamltext.pairs(node)}
        if isinstance(node, yaml.SequenceNode):
            return [self.free(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
        return _json_scalar(node)

    def _list(self, node: yaml.Node, field: Field, path: str) -> list[Any]:
        if not isinstance(node, yaml.SequenceNode):
            self._fail(path, f"must be a list, not {_shown(node)}", node.start_mark, "begin each item with -")
            return []
        items = []
        for index, item in enumerate(node.value):
            below = f"{path}[{index}]"
            self.lines[below] = item.start_mark.line + 1
            if isinstance(field.of, Message):
                items.append(self.message(item, field.of, below))
            else:
                value = self.value(item, Field("", field.of or "text"), below)
                if value is not None:
                    items.append(value)
        return items

    def _tags(self, node: yaml.Node, path: str) -> dict[str, str]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(path, f"must be a mapping of strings, not {_shown(node)}", node.start_mark)
            return {}
        tags: dict[str, str] = {}
        for key, value in yamltext.pairs(node):
            name = str(key.value)
            below = join(path, name)
            self.lines[below] = key.start_mark.line + 1
            if name in tags:
                self._fail(below, "is given twice", key.start_mark)
            if not isinstance(value, yaml.ScalarNode):
                self._fail(below, f"must be a string, not {_shown(value)}", value.start_mark)
                continue
            if not value.tag.endswith(":str") and value.style in {None, ""}:
                self._fail(below, f"must be a string, not {_shown(value)}", value.start_mark, f'write "{value.value}"')
            tags[name] = str(value.value)
        return tags

    def _scalar(self, node: yaml.ScalarNode, field: Field, path: str) -> Any:
        text = str(node.value)
        if field.kind == "text":
            return text
        if field.kind == "boolean":
            if not node.tag.endswith(":bool"):
                self._fail(path, f"must be true or false, not {text!r}", node.start_mark)
                return None
            return _json_scalar(node)
        if field.kind == "enum":
            return self._enum(text, field, path, node.start_mark)
        if field.kind == "duration":
            try:
                parse_nanoseconds(text)
            except ValueError as error:
                self._fail(path, f"{text[:60]!r} {error}", node.start_mark)
                return None
            return text
        if not _INTEGER.fullmatch(text) or len(text) > 12:
            self._fail(path, f"must be a whole number, not {text!r}", node.start_mark)
            return None
        number = int(text)
        low, high = field.minimum, field.maximum
        if (low is not None and number < low) or (high is not None and number > high):
            valid = f"{low} to {high}" if high is not None else f"{low} or more"
            self._fail(path, f"{number} is out of range", node.start_mark, valid)
            return None
        return number

    def _enum(self, text: str, field: Field, path: str, mark: yaml.Mark) -> str | None:
        if text.isascii() and text.isdigit() and int(text[:9]) < len(field.choices):
            return field.choices[int(text)]
        for choice in field.choices:
            if choice.lower() == text.lower():
                if choice != text:
                    self.respelled[path] = (text, choice)
                return choice
        self._fail(path, f"{text!r} is not known", mark, f"one of {', '.join(field.choices)}")
        return None

    def _unknown(self, message: Message, key: str, path: str, mark: yaml.Mark) -> None:
        if len(self.unknown) >= _MAX_NOTES:
            return
        is_hinted = len(key) <= _MAX_HINTED_LENGTH and len(self.unknown) < _MAX_HINTS
        similar = difflib.get_close_matches(key, [field.name for field in message.fields], 1) if is_hinted else ()
        hint = f"did you mean {similar[0]}?" if similar else ""
        self.unknown.append(
            Problem(path, "is not a known field; it is passed on unchanged", hint, self.source, mark.line + 1)
        )

    def _fail(self, path: str, message: str, mark: Any, hint: str = "") -> None:
        self.problems.append(Problem(path, message, hint, self.source, mark.line + 1 if mark else 0))


def join(path: str, key: str) -> str:
    """Join ``path`` and ``key`` to a field path; keys that are not plain names are bracketed and quoted."""
    if not _PLAIN_KEY.fullmatch(key):
        return f'{path}["{key}"]'
    return f"{path}.{key}" if path else key


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else f"{str(node.value)[:60]}"


def _article(kind: str) -> str:
    return {"integer": "a whole number", "boolean": "true or false", "text": "a string"}.get(kind, f"a {kind}")


def _json_scalar(node: yaml.Node) -> str | int | float | bool | None:
    text = str(node.value)
    kind = node.tag.rpartition(":")[2]
    try:
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() in {"true", "yes", "on"}
        if kind == "int" and _INTEGER.fullmatch(text) and len(text) < 20:
            return int(text)
        if kind == "float" and re.match(r"^[-+]?[0-9.eE+-]+$", text):
            return float(text)
    except ValueError:
        pass
    return text
