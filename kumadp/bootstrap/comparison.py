"""Comparison of two bootstraps by meaning, and the kind of restart that applies each difference."""

from __future__ import annotations

import enum
import json
import re
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from kumadp.bootstrap.fields import get
from kumadp.decoding import Undecodable, decode_json, is_deeper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Restart(enum.IntEnum):
    """How a difference takes effect; of several, the largest counts."""

    NONE = 0
    """None is needed: Envoy does not see it, kumadp applies it."""
    EPOCH = 1
    """A new epoch of Envoy by hot restart, without loss."""
    COLD = 2
    """A stop and a start of Envoy."""


class Difference(Struct, frozen=True):
    """One field: its path in camelCase, how it changed, without secrets, and the restart that applies it.

    ``node``: the control plane reads it once for each stream, so that the relay must open a new one too.
    """

    path: str
    reason: str
    restart: Restart
    node: bool = False

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


# An epoch hands its sockets to the next one, and these can change what a socket is (Envoy: io_uring, VCL).
_COLD = ("defaultSocketInterface", "bootstrapExtensions")
# These change by time or by chance; neither Envoy nor the control plane acts on them.
_VOLATILE = frozenset({"creationTime", "modificationTime"})
# Lists whose elements are identified by their names, not by their positions.
_BY_NAME = frozenset({"clusters", "listeners", "secrets", "layers"})
# Kuma writes these in the random order of a Go map.
_UNORDERED = frozenset({"features"})
_VERSIONS = ("node", "metadata", "version")
_SECRET = frozenset({"inlineBytes", "inlineString", "privateKey", "password", "initialMetadata", "accessToken"})
_RESOURCE = "dataplane.resource"
_DURATION = re.compile(r"-?[0-9]+(?:\.[0-9]+)?s")
_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]+)?")
_CAMEL = re.compile(r"_([a-z])")
_LONGEST = 60
# No Dataplane is nested deeper (levels).
_DEEPEST = 100


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, hot: bool = True) -> list[Difference]:
    """Return all differences, in the order of their paths; empty if both mean the same.

    Order of maps, names in snake_case, numbers as text, durations of another spelling, what is null or an empty list,
    and tokens do not count. Without ``hot`` restart, which needs the relay, all that Envoy sees is COLD. Both must be
    bootstraps as Envoy gets them (`kumadp.bootstrap.rewrite`), without the control plane's address and CA.
    """
    changes = sorted(_compare(_normal(old), _normal(new), ()), key=lambda change: change[0])
    return [Difference(_text(path), reason, _restart(path, hot), _is_node(path)) for path, reason in changes]


def same_node(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether the Nodes of both bootstraps mean the same to a control plane, compared as in `differences`.

    Versions of the data plane's programs do not count: Kuma 2.8 to 2.13 only shows them.
    """
    trees = ({"node": get(old, "node") or {}}, {"node": get(new, "node") or {}})
    changes = _compare(_normal(trees[0]), _normal(trees[1]), ())
    return all(path[: len(_VERSIONS)] == _VERSIONS for path, _ in changes)


def restart_needed(changes: Sequence[Difference]) -> Restart:
    """Return the largest kind of restart among differences; NONE without differences."""
    return max((change.restart for change in changes), default=Restart.NONE)


Keys = tuple[str, ...]


def _restart(path: Keys, hot: bool) -> Restart:
    return Restart.COLD if not hot or path[0] in _COLD else Restart.EPOCH


def _is_node(path: Keys) -> bool:
    return path[0] == "node"


def _compare(old: Any, new: Any, path: Keys) -> Iterator[tuple[Keys, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            below = (*path, name)
            if name not in new:
                yield below, "was removed"
            elif name not in old:
                yield below, f"was added{_value(new[name], below)}"
            else:
                yield from _compare(old[name], new[name], below)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
            yield from _compare(old_item, new_item, (*path, f"[{index}]"))
    elif old != new:
        yield path, _changed(old, new, path)


def _changed(old: Any, new: Any, path: Keys) -> str:
    if isinstance(old, list) and isinstance(new, list):
        return f"has {len(new)} elements instead of {len(old)}"
    old_value, new_value = _value(old, path), _value(new, path)
    return f"changed from{old_value[1:]} to{new_value[1:]}" if old_value and new_value else "changed"


def _value(value: Any, path: Keys) -> str:
    """Return a short plain value, shown after its field; empty if it is long, a structure, or could be secret."""
    if isinstance(value, dict | list) or _SECRET.intersection(path):
        return ""
    text = json.dumps(value)
    return f": {text}" if len(text) <= _LONGEST else ""


def _normal(tree: Any, path: Keys = ()) -> Any:
    """Return a tree that is equal for all spellings of the same meaning."""
    in_node = path[:2] == ("node", "metadata")
    if isinstance(tree, dict):
        fields = {}
        for key, value in tree.items():
            # Keys of a Struct and names of types have one spelling; all others are fields.
            name = str(key) if in_node or "." in str(key) else _CAMEL.sub(lambda part: part[1].upper(), str(key))
            inner = _normal(_inner(name, value) if in_node else value, (*path, name))
            if inner is not None and inner != [] and name not in _VOLATILE:
                fields[name] = inner
        return fields
    if isinstance(tree, list):
        last = path[-1] if path else ""
        if last == "initialMetadata":
            tree = [item for item in tree if str(get(item, "key")).lower() != "authorization"]
        if last in _BY_NAME and all(isinstance(item, dict) and item.get("name") for item in tree):
            return {f"[{item['name']}]": _normal(item, (*path, f"[{item['name']}]")) for item in tree}
        items = [_normal(item, (*path, "[]")) for item in tree]
        return sorted(items, key=repr) if last in _UNORDERED else items
    return tree if in_node else _scalar(tree)


def _inner(name: str, value: Any) -> Any:
    """Decode the Dataplane, which is JSON text in the node's metadata."""
    if name == _RESOURCE and isinstance(value, str):
        try:
            decoded = decode_json(value)
        except Undecodable:
            return value
        # The decoder takes deeper trees than can be walked.
        return value if is_deeper(decoded, _DEEPEST) else decoded
    return value


def _scalar(value: Any) -> Any:
    """Return one spelling of a scalar: protobuf's JSON has numbers as text, and durations with any number of zeros."""
    if isinstance(value, str):
        if _DURATION.fullmatch(value):
            return f"{float(value[:-1]):g}s"
        if _NUMBER.fullmatch(value):
            value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(path: Keys) -> str:
    text = ""
    for part in path:
        if part.startswith("["):
            text += part
        elif "." in part:
            text += f'["{part}"]'
        else:
            text += f".{part}" if text else part
    return text
