"""Decodes JSON and MessagePack from outside, with one exception for every fault.

The exceptions of decoders depend on the decoder, on its release and on the fault. For text that is not UTF-8, msgspec
up to 0.21 raises UnicodeDecodeError, and 0.23 DecodeError, which is not a ValueError in older releases; both msgspec
and json raise RecursionError for deep nesting; json accepts NaN, numbers beyond a float and halves of surrogate pairs,
which fail later, when they are written. A caller that catches one of these exceptions misses the others.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")

# An escaped character of a JSON string: a whole surrogate pair, one half of a pair, or anything else.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
# A MsgspecError is a ValueError only in newer releases.
_WRONG = (msgspec.MsgspecError, ValueError, RecursionError)


class Undecodable(ValueError):
    """The data is malformed or has the wrong type; the text is one line and quotes no value."""


@overload
def decode_json(data: bytes | str) -> Any: ...
@overload
def decode_json(data: bytes | str, kind: type[T]) -> T: ...
def decode_json(data: bytes | str, kind: Any = Any) -> Any:
    """Return the value of a JSON text (RFC 8259: no NaN, UTF-8), as ``kind``; raises Undecodable."""
    try:
        return msgspec.json.decode(data, type=kind)
    except _WRONG as error:
        raise Undecodable(_reason(error)) from None


def decode_msgpack(data: bytes | memoryview, kind: type[T]) -> T:
    """Return the value of MessagePack data, as ``kind``; raises Undecodable."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except _WRONG as error:
        raise Undecodable(_reason(error)) from None


def convert(value: object, kind: type[T]) -> T:
    """Convert a decoded value to ``kind``; raises Undecodable."""
    try:
        return msgspec.convert(value, kind)
    except _WRONG as error:
        raise Undecodable(_reason(error)) from None


def is_deeper(value: object, levels: int) -> bool:
    """Return whether mappings and lists are nested deeper than that: a walk over them would overflow the stack."""
    held = [value]
    for _ in range(levels + 1):
        holders = [each for each in held if isinstance(each, dict | list)]
        if not holders:
            return False
        held = [each for holder in holders for each in (holder.values() if isinstance(holder, dict) else holder)]
    return True


def repair(data: bytes) -> str:
    """Return a JSON text with U+FFFD for invalid UTF-8 and for halves of surrogate pairs, as Go's encoding/json."""
    text = data.decode("utf-8", "replace")
    return _ESCAPE.sub(lambda match: "\ufffd" if match["half"] else match[0], text)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, UnicodeError):
        return "not UTF-8"
    return str(error) or type(error).__name__
