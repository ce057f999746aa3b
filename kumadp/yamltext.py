"""Reads YAML from outside within limits that are checked before it is composed: size, depth, expanded aliases.

libyaml's composer recurses in C, so a deep document crashes the process, and nested aliases grow without bound in any
code that walks them. The scan here only reads events, which does neither.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator


# More digits than a double or a 64-bit integer needs in any notation; Python's own limit is 4300 digits.
_LONGEST_NUMBER = 400
# Ends of the tags of JSON values, and of the merge key.
_JSON = frozenset({"null", "bool", "int", "float", "str", "seq", "map", "merge"})


class Bounds(Struct, frozen=True):
    """``size`` in bytes (of a text: characters), ``depth`` in levels, ``nodes`` after aliases are expanded."""

    size: int
    depth: int = 100
    nodes: int = 50_000


def read(name: str, bounds: Bounds) -> str:
    """Return the text of a file (``-``: stdin), at most a byte over the limit. Raises OSError, UnicodeDecodeError."""
    with open(0, "rb", closefd=False) if name == "-" else Path(name).open("rb") as file:
        data = file.read(bounds.size + 1)
    # A file that is too large is rejected for that, and not for the character at which it was cut.
    return data.decode("utf-8", "strict" if len(data) <= bounds.size else "replace")


def compose(text: str | bytes, bounds: Bounds) -> yaml.Node | None:
    """Return the root node, None for an empty document; raises yaml.YAMLError with a one-line ``problem``."""
    with _only_yaml_errors():
        _scan(text, bounds)
        return yaml.compose(text, yaml.CSafeLoader)


def load(text: str | bytes, bounds: Bounds, *, unique: bool = False) -> object:
    """Return values of JSON types; raises yaml.YAMLError with a one-line ``problem``.

    ``unique``: a duplicate key of a mapping is an error (YAML 1.2, 3.2.1.3); without it the last one counts.
    """
    with _only_yaml_errors():
        _scan(text, bounds)
        return yaml.load(text, _UniqueLoader if unique else _JsonLoader)  # noqa: S506 - a part of the safe loader


@contextlib.contextmanager
def _only_yaml_errors() -> Iterator[None]:
    """Turn exceptions of int, float and dict in PyYAML's constructors, and UnicodeEncodeError, into yaml.YAMLError."""
    try:
        yield
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError, RecursionError) as error:
        raise _problem(_plain(error)) from None


def _plain(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "not UTF-8 text"
    if isinstance(error, RecursionError):
        return "nested too deep"
    return "the value does not fit its tag"


class _JsonLoader(yaml.CSafeLoader):
    """The safe loader without dates, bytes, sets and non-finite numbers, which JSON cannot represent."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _JSON]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar = {
        tag: make
        for tag, make in yaml.CSafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _JSON
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value; raises yaml.YAMLError with its position if it does not fit its tag (``!!int x``)."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
            raise _problem(_plain(error), node.start_mark) from None

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        """Return an integer; digits in base 60 (``1:20``) are text, as in Go's YAML and YAML 1.2."""
        text = self.construct_scalar(node)
        if len(text) > _LONGEST_NUMBER:
            raise _problem(f"a number with more than {_LONGEST_NUMBER} digits", node.start_mark)
        return text if ":" in text else super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        """Return a finite number; digits in base 60 are text."""
        text = self.construct_scalar(node)
        if len(text) > _LONGEST_NUMBER:
            raise _problem(f"a number with more than {_LONGEST_NUMBER} digits", node.start_mark)
        if ":" in text:
            return text
        number = float(super().construct_yaml_float(node))
        if not math.isfinite(number):
            raise _problem(f"{node.value} is not a number", node.start_mark)
        return number


_JsonLoader.add_constructor("tag:yaml.org,2002:int", _JsonLoader.construct_yaml_int)
_JsonLoader.add_constructor("tag:yaml.org,2002:float", _JsonLoader.construct_yaml_float)


class _UniqueLoader(_JsonLoader):
    """Rejects duplicate keys, of which another library might use the other value."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Check keys before others are merged in, possible duplicates (YAML 1.1: merge key). Merges a mapping once."""
        flattened: set[yaml.Node] = self.__dict__.setdefault("flattened", set())
        if node in flattened:
            return
        flattened.add(node)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _problem(f"{key.value[:80]!r} is there twice", key.start_mark)
                seen.add(key.value)
        super().flatten_mapping(node)


def pairs(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Yield keys and values of a mapping; those merged by ``<<`` come last, and never replace others (YAML 1.1)."""
    merged: list[yaml.Node] = []
    own: set[str] = set()
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
        else:
            own.add(str(key.value))
            yield key, value
    for other in merged:
        if not isinstance(other, yaml.MappingNode):
            continue
        for key, value in pairs(other):
            if str(key.value) not in own:
                own.add(str(key.value))
                yield key, value


def reason(error: Exception) -> str:
    """Return why a text could not be read, in one line."""
    problem = getattr(error, "problem", None) or str(error) or type(error).__name__
    return str(problem).splitlines()[0]


def line(error: Exception) -> int:
    """Return the line of an error, counted from 1; 0 if unknown."""
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark is not None else 0


class _Open(Struct):
    """A collection whose end was not read yet: its anchor, the count at its start, its height so far."""

    anchor: str | None
    start_count: int
    height: int = 1


class _Scan:
    """Counts values as if every alias were expanded."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._anchors: dict[str, tuple[int, int]] = {}
        self._open: list[_Open] = []
        self._count = 0
        self._documents = 0

    def see(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _problem("more than one document", event.start_mark)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                text = f"the alias *{event.anchor} stands for nothing, or for what it is part of"
                raise _problem(text, event.start_mark)
            self._add(event, *self._anchors[event.anchor])
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open.append(_Open(event.anchor, self._count))
            self._add(event, 1, 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            ended = self._open.pop()
            if self._open:
                self._open[-1].height = max(self._open[-1].height, ended.height + 1)
            if ended.anchor is not None:
                self._anchors[ended.anchor] = (self._count - ended.start_count, ended.height)
        elif isinstance(event, yaml.ScalarEvent):
            self._add(event, 1, 0)
            if event.anchor is not None:
                self._anchors[event.anchor] = (1, 0)

    def _add(self, event: yaml.Event, size: int, height: int) -> None:
        self._count += size
        if self._open:
            self._open[-1].height = max(self._open[-1].height, height + 1)
        if len(self._open) + height > self._bounds.depth:
            raise _problem(_too_deep(self._bounds), event.start_mark)
        if self._count > self._bounds.nodes:
            text = f"more than {self._bounds.nodes} values (aliases count with what they stand for)"
            raise _problem(text, event.start_mark)


def _scan(text: str | bytes, bounds: Bounds) -> None:
    if len(text) > bounds.size:
        raise _problem(f"larger than {bounds.size // 1024} KiB")
    scan = _Scan(bounds)
    try:
        for event in yaml.parse(text, yaml.CSafeLoader):
            scan.see(event)
    except yaml.scanner.ScannerError as error:
        # libyaml looks ahead of the events it gives, and from 0.2.6 on stops by itself at 1000 levels (PyYAML 6.0.4).
        if "nesting depth" in str(error.problem):
            raise _problem(_too_deep(bounds), error.problem_mark) from None
        raise


def _too_deep(bounds: Bounds) -> str:
    return f"nested deeper than {bounds.depth} levels"


def _problem(text: str, mark: Any = None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)
