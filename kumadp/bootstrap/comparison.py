"""What differs between two bootstraps by meaning, and what kind of restart it takes to have the new one."""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kumadp.bootstrap.fields import get
from kumadp.decoding import Undecodable, decode_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Restart(enum.IntEnum):
    """How a difference takes effect; the largest of several counts."""

    NONE = 0
    """Nothing is to be done: Envoy does not see it, kumadp takes it as it is."""
    EPOCH = 1
    """A new epoch of Envoy by hot restart, without loss."""
    COLD = 2
    """A stop and a start of Envoy."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field: its path in camelCase, what happened to it, without secrets, and what it takes.

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
# Told by time or by chance, and by nothing that Envoy or the control plane acts on.
_VOLATILE = frozenset({"creationTime", "modificationTime"})
# Where an element's name, not its place, says which one it is.
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


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, hot: bool = True) -> list[Difference]:
    """All differences, in the order of their paths; empty when both mean the same.

    Order of maps, names in snake_case, numbers as text, durations of another spelling, what is null or an empty list,
    and tokens do not count. Without ``hot`` restart, which the relay makes possible, all that Envoy sees is COLD. Give
    the bootstraps as Envoy gets them (`kumadp.bootstrap.rewrite`), where the control plane's address and CA are gone.
    """
    found = sorted(_compare(_normal(old), _normal(new), ()), key=lambda one: one[0])
    return [Difference(_text(path), reason, _restart(path, hot), _is_node(path)) for path, reason in found]


def same_node(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a control plane gives the same to the Nodes of both bootstraps, by meaning as in `differences`.

    Versions of the data plane's programs do not count: Kuma 2.8 to 2.13 only shows them.
    """
    trees = ({"node": get(old, "node") or {}}, {"node": get(new, "node") or {}})
    found = _compare(_normal(trees[0]), _normal(trees[1]), ())
    return all(path[: len(_VERSIONS)] == _VERSIONS for path, _ in found)


def restart_needed(found: Sequence[Difference]) -> Restart:
    """The largest kind of restart among differences; NONE where there are none."""
    return max((one.restart for one in found), default=Restart.NONE)


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
                yield below, "is gone"
            elif name not in old:
                yield below, f"is new{_value(new[name], below)}"
            else:
                yield from _compare(old[name], new[name], below)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _compare(one, other, (*path, f"[{index}]"))
    elif old != new:
        yield path, _changed(old, new, path)


def _changed(old: Any, new: Any, path: Keys) -> str:
    if isinstance(old, list) and isinstance(new, list):
        return f"has {len(new)} elements instead of {len(old)}"
    before, after = _value(old, path), _value(new, path)
    return f"changed from{before[1:]} to{after[1:]}" if before and after else "changed"


def _value(value: Any, path: Keys) -> str:
    """A short plain value, to be shown after its field; empty where it is long, a structure, or could be secret."""
    if isinstance(value, dict | list) or _SECRET.intersection(path):
        return ""
    text = json.dumps(value)
    return f": {text}" if len(text) <= _LONGEST else ""


def _normal(tree: Any, path: Keys = ()) -> Any:
    """A tree in which what means the same is the same."""
    in_node = path[:2] == ("node", "metadata")
    if isinstance(tree, dict):
        made = {}
        for key, value in tree.items():
            # The keys of a Struct and types' names are what they are; all others are fields.
            name = str(key) if in_node or "." in str(key) else _CAMEL.sub(lambda part: part[1].upper(), str(key))
            kept = _normal(_inner(name, value) if in_node else value, (*path, name))
            if kept is not None and kept != [] and name not in _VOLATILE:
                made[name] = kept
        return made
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
    """The Dataplane stands as JSON text in the node's metadata."""
    if name == _RESOURCE and isinstance(value, str):
        try:
            return decode_json(value)
        except Undecodable:
            return value
    return value


def _scalar(value: Any) -> Any:
    """Protobuf's JSON takes numbers as text, and durations with any number of zeros."""
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
