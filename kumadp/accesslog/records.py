"""Lines of access log as Kuma configures Envoy to write them: destination and payload. Pure."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

import msgspec

from kumadp.decoding import repair

# Characters that Go's encoding/json escapes in addition to those that JSON requires.
_ESCAPED = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"},
)
_LONGEST_ADDRESS = 300
# Levels of lists and objects in a message. The interpreter's own limit is another in each release of Python.
_DEEPEST = 200


class _Wrapped(msgspec.Struct):
    address: str = ""
    message: Any = None


_decode = msgspec.json.Decoder(_Wrapped).decode
_encode = msgspec.json.Encoder(order="sorted").encode


def parse(line: bytes) -> tuple[str, bytes] | None:
    """Parse a line without its line end into address and payload; None if it has neither of the two formats.

    MeshAccessLog (Kuma 2.0 to 2.14) writes JSON with ``address`` and ``message``: a string is passed on unchanged, with
    the newline it contains, anything else as Go would encode it, with a newline. TrafficLog writes ``address;payload``.
    """
    if line.startswith(b"{") and (wrapped := _unwrap(line)) is not None:
        message = wrapped.message
        try:
            return wrapped.address, message.encode() if isinstance(message, str) else encode(message)
        except RecursionError:
            return None
    address, separator, payload = line.partition(b";")
    return (address.decode("utf-8", "replace"), payload + b"\n") if separator else None


def _unwrap(line: bytes) -> _Wrapped | None:
    # A client can send any bytes in a header.
    for text in (lambda: line, lambda: repair(line)):
        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
            return _decode(text())
    return None


def encode(message: Any) -> bytes:
    """Encode like Go's encoding/json: compact, keys sorted, HTML escaped, whole numbers without a point; a newline.

    Raises RecursionError for a message with too many levels.
    """
    text = _encode(_with_go_numbers(message, _DEEPEST)).decode()
    return text.translate(_ESCAPED).encode() + b"\n"


def _with_go_numbers(value: Any, levels: int) -> Any:
    if isinstance(value, float):
        return msgspec.Raw(_number(value))
    if not isinstance(value, dict | list):
        return value
    if not levels:
        raise RecursionError(f"a message with more than {_DEEPEST} levels")
    if isinstance(value, dict):
        return {key: _with_go_numbers(item, levels - 1) for key, item in value.items()}
    return [_with_go_numbers(item, levels - 1) for item in value]


def _number(value: float) -> str:
    """Go writes an exponent below 1e-6 and from 1e21 on."""
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        text = f"{Decimal(repr(value)):f}"
        return text.removesuffix(".0")
    return repr(value).replace("e-0", "e-")


def split_address(address: str) -> tuple[str, int] | None:
    """Split ``host:port``; an empty host is localhost, as in Go. None if it has another format."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or len(address) > _LONGEST_ADDRESS or not (port.isascii() and port.isdecimal()):
        return None
    if not 0 < int(port) < 65536 or not host.isprintable() or any(char in host for char in " /{}\"'"):
        return None
    return host or "localhost", int(port)
