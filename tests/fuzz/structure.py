"""Mutations of what an input holds, which stays well-formed: trees of JSON and MessagePack, messages of protobuf."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from kumadp.relay.protobuf import LENGTH, BadMessage, field_bytes, fields, varint

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

_LEAVES: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 65536, 1 << 31, 1 << 63, 1e308, 0.5, "", "a", "0", "9901", "::", "0.0.0.0",
    "127.0.0.1",
    "\ud800", "\n", "a" * 300, [], {}, [[]], {"": None}, [None], {"a": {"a": {}}},
)  # fmt: skip
_DEEP = 400


def _deep(leaf: object) -> object:
    for _ in range(_DEEP):
        leaf = [leaf]
    return leaf


class TreeMutator:
    """Exchanges, removes, repeats and adds parts of trees of JSON types."""

    def __init__(self, decode: Callable[[bytes], object], encode: Callable[[object], bytes]) -> None:
        self._decode = decode
        self._encode = encode

    def __call__(self, choose: random.Random, inputs: Sequence[bytes]) -> bytes | None:
        """Return a changed input, None if those that were chosen hold no tree."""
        try:
            tree, other = self._decode(choose.choice(inputs)), self._decode(choose.choice(inputs))
            root: list[Any] = [tree]
            for _ in range(1 + int(choose.expovariate(0.5))):
                self._change(choose, root, other)
            return self._encode(root[0]) if root else None
        except (ValueError, ArithmeticError, msgspec.MsgspecError, RecursionError, TypeError):
            return None

    def _change(self, choose: random.Random, root: list[Any], other: object) -> None:
        places = _places(root)
        if not places:
            return
        holder, key = choose.choice(places)
        value = holder[key]
        match choose.randrange(8):
            case 0:
                del holder[key]
            case 1 | 2:
                holder[key] = choose.choice(_LEAVES) if choose.random() < 0.97 else _deep(value)
            case 3:
                holder[key] = _copied(_some(choose, root))
            case 4:
                holder[key] = _copied(_some(choose, [other]))
            case 5 if isinstance(holder, list):
                holder.extend([_copied(value)] * choose.randrange(1, 20))
            case 6 if isinstance(holder, dict):
                holder[_spelled(choose, str(key))] = _copied(value)
            case _:
                holder[key] = [value] if choose.random() < 0.5 else {str(key): value}


def _spelled(choose: random.Random, name: str) -> str:
    """Return the name in snake_case, with other capitals, or with something behind it."""
    snake = "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)
    return choose.choice((snake, name.upper(), name + "x", name.title(), ""))


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return each mapping or list with each of its keys."""
    places: list[tuple[Any, Any]] = []
    rest = [tree]
    while rest and len(places) < 2000:
        holder = rest.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        places += [(holder, key) for key in keys]
        rest += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return places


def _some(choose: random.Random, tree: list[Any]) -> object:
    holder, key = choose.choice(_places(tree))
    return holder[key]


def _copied(value: object) -> object:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


def _json(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


json_trees = TreeMutator(json.loads, _json)
msgpack_trees = TreeMutator(msgspec.msgpack.decode, msgspec.msgpack.encode)


def messages(choose: random.Random, inputs: Sequence[bytes]) -> bytes | None:
    """Change fields of a message, at any depth, and encode it again with the lengths that it has then."""
    try:
        return _changed(choose, choose.choice(inputs), choose.choice(inputs), 6)
    except BadMessage:
        return None


def _changed(choose: random.Random, data: bytes, other: bytes, depth: int) -> bytes:
    parts = [(number, data[start:end]) for number, start, end in fields(data)]
    if not parts:
        return data
    at = choose.randrange(len(parts))
    number, value = parts[at]
    action = choose.randrange(9)
    if action < 4 and depth:
        try:
            parts[at] = number, _changed(choose, value, other, depth - 1)
        except BadMessage:
            parts[at] = number, value[: choose.randint(0, len(value))]
    elif action == 4:
        del parts[at]
    elif action == 5:
        parts[at:at] = [parts[at]] * choose.randrange(1, 30)
    elif action == 6:
        parts.insert(at, parts.pop())
    elif action == 7:
        parts[at] = choose.choice((1, 2, 3, 4, 5, 6, 7, 26, 29, number)), value
    else:
        foreign = [(kind, other[start:end]) for kind, start, end in fields(other)]
        parts[at] = choose.choice(foreign) if foreign else (number, b"")
    scalar = varint(choose.randrange(1, 9) << 3) + varint(choose.getrandbits(40)) if choose.random() < 0.1 else b""
    return scalar + b"".join(_encoded(choose, *part) for part in parts)


def _encoded(choose: random.Random, number: int, value: bytes) -> bytes:
    if choose.random() < 0.02:
        # A longer form of the same length, which is allowed.
        return varint(number << 3 | LENGTH) + bytes((len(value) & 0x7F | 0x80, len(value) >> 7 & 0x7F)) + value
    return field_bytes(number, value)
