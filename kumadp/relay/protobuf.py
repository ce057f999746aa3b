"""The part of the protobuf wire format that the relay needs: fields of one message, read and written as bytes.

Encoding: https://protobuf.dev/programming-guides/encoding/. Resources stay opaque, so no protobuf runtime is needed.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
# Most numbers are tags and lengths of names.
_SHORT = [bytes((value,)) for value in range(0x80)]


class BadMessage(ValueError):
    """Bytes that are not a discovery message; the text names the fault and never quotes the bytes."""


def fields(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each length-delimited field in ``data[start:end]``; scalars are skipped.

    Every field that the relay reads is length-delimited (strings, messages). Raises BadMessage.
    """
    at = start
    end = len(data) if end is None else end
    while at < end:
        # A tag below 128 and a length below 128 are one byte each, as nearly all are.
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(data, at - 1, end)
        kind = tag & 7
        if not tag >> 3:
            raise BadMessage("a field has the number 0")
        if kind == LENGTH:
            if at >= end:
                raise BadMessage("it ends within a field")
            size = data[at]
            at += 1
            if size >= 0x80:
                size, at = _varint(data, at - 1, end)
            if size > end - at:
                raise BadMessage("it ends within a field")
            yield tag >> 3, at, at + size
            at += size
        elif kind == VARINT:
            _, at = _varint(data, at, end)
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
            if at > end:
                raise BadMessage("it ends within a field")
        else:
            raise BadMessage(f"wire type {kind} is unknown")


def text(data: bytes, start: int, end: int) -> str:
    """Decode a string field; raises BadMessage if it is not UTF-8."""
    try:
        return data[start:end].decode()
    except UnicodeDecodeError:
        raise BadMessage("a string is not UTF-8") from None


def varint(value: int) -> bytes:
    """Encode a number as a varint; negative ones as 64-bit two's complement, like ``int32`` and ``int64``."""
    if 0 <= value <= 0x7F:
        return _SHORT[value]
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field_bytes(number: int, value: bytes | memoryview) -> bytes:
    """Encode a length-delimited field, also if it is empty."""
    return varint(number << 3 | LENGTH) + varint(len(value)) + value


def field_text(number: int, value: str) -> bytes:
    """Encode a string field; an empty one, the default of proto3, is omitted."""
    return field_bytes(number, value.encode()) if value else b""


def field_varint(number: int, value: int) -> bytes:
    """Encode a number, bool or enum field; 0, the default of proto3, is omitted."""
    return varint(number << 3 | VARINT) + varint(value) if value else b""


def field_double(number: int, value: float) -> bytes:
    """Encode a double field, also if it is 0."""
    return varint(number << 3 | FIXED64) + struct.pack("<d", value)


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise BadMessage("a number is longer than 10 bytes")
    raise BadMessage("it ends within a number")
