"""Parsers of the heads of HTTP/1.1 messages: pure, in linear time, bounded by the caller in bytes and here in fields.

Requests are parsed as strictly as RFC 9112 allows, since two programs that read one differently can be deceived:
each line ends in CRLF, no field is continued on a second line, and the length of the body is stated once. Responses
are parsed as Go's net/http does, with which kubelet probes: a line may end in LF alone, and a field may be continued.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kumadp.host.net.http1.fields import MAX_TOKENS, FieldList

MAX_REQUEST_LINE = 8190
MAX_REQUEST_FIELDS = 128
MAX_RESPONSE_FIELDS = 512
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
# In origin, absolute or asterisk form (RFC 9112, 3.2).
_TARGET = re.compile(rb"(?:/|[A-Za-z][A-Za-z0-9+.-]{0,15}://)[!-~]*|\*")
_VERSION = re.compile(rb"HTTP/1\.[01]")
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] +([1-9][0-9][0-9])(?: ([^\n]*))?")
# All but tab, CR and LF, which may end a line.
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BREAK = re.compile(rb"[\r\n]")
# The continuation of a field on a further line.
_FOLD = re.compile(rb"\r?\n[ \t]+")
_LENGTH = re.compile(r"[0-9]{1,18}")


class MalformedMessage(ValueError):
    """A message that cannot be parsed; the text is the reason, without anything of the message."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request without its body. ``length`` is the body's in bytes, None if it is chunked."""

    method: str
    target: str
    minor: int
    fields: FieldList
    length: int | None
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response without its body. ``length`` is the body's in bytes; None: chunked, or until the connection ends."""

    status: int
    reason: str
    fields: FieldList
    length: int | None
    chunked: bool


def parse_request_head(head: bytes) -> RequestHead:
    """Parse a request's head without the empty line at its end. Raises MalformedMessage."""
    if _CONTROL.search(head):
        raise MalformedMessage("a control character")
    first, *lines = head.split(b"\r\n")
    if len(lines) > MAX_REQUEST_FIELDS:
        raise MalformedMessage(f"more than {MAX_REQUEST_FIELDS} header fields")
    if len(first) > MAX_REQUEST_LINE:
        raise MalformedMessage(f"a request line of more than {MAX_REQUEST_LINE} bytes")
    parts = first.split(b" ")
    if len(parts) != 3 or not _METHOD.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise MalformedMessage("no request line")
    if not _VERSION.fullmatch(parts[2]):
        raise MalformedMessage("not HTTP/1.0 or HTTP/1.1")
    pairs = []
    for line in lines:
        if _BREAK.search(line):
            raise MalformedMessage("a line that does not end in CRLF")
        pairs.append(_field(line))
    fields = FieldList(pairs)
    minor = parts[2][-1] - 0x30
    hosts = len(fields.values.get("host", ()))
    if hosts > 1 or (minor and not hosts):
        # RFC 9112, 3.2.
        raise MalformedMessage("no Host field, or more than one")
    if any(value.count(",") >= MAX_TOKENS for value in fields.values.get("connection", ())):
        raise MalformedMessage(f"more than {MAX_TOKENS} elements of Connection")
    tokens = fields.tokens("connection")
    return RequestHead(
        parts[0].decode("ascii"),
        parts[1].decode("latin-1"),
        minor,
        fields,
        _request_length(fields, minor),
        keep_alive="close" not in tokens and (minor == 1 or "keep-alive" in tokens),
    )


def _request_length(fields: FieldList, minor: int) -> int | None:
    codings, lengths = fields.values.get("transfer-encoding"), fields.values.get("content-length")
    if codings is not None:
        if lengths is not None:
            raise MalformedMessage("Content-Length beside Transfer-Encoding")
        if len(codings) != 1 or codings[0].lower() != "chunked" or not minor:
            raise MalformedMessage("a Transfer-Encoding other than chunked")
        return None
    if lengths is None:
        return 0
    if len(lengths) != 1 or not _LENGTH.fullmatch(lengths[0]):
        raise MalformedMessage("a Content-Length that is not one number")
    return int(lengths[0])


def parse_response_head(head: bytes, *, has_body: bool) -> ResponseHead:
    """Parse a response's head without the empty line at its end; ``has_body`` is false for the response to HEAD.

    Raises MalformedMessage.
    """
    first, *lines = _FOLD.sub(b" ", head).split(b"\n")
    match = _STATUS_LINE.fullmatch(first.removesuffix(b"\r"))
    if match is None:
        raise MalformedMessage("no status line")
    if len(lines) > MAX_RESPONSE_FIELDS:
        raise MalformedMessage(f"more than {MAX_RESPONSE_FIELDS} header fields")
    fields, status = FieldList([_field(line.removesuffix(b"\r")) for line in lines]), int(match[1])
    reason = (match[2] or b"").strip().decode("latin-1")
    if not has_body or status < 200 or status in {204, 304}:
        return ResponseHead(status, reason, fields, 0, chunked=False)
    codings, lengths = fields.values.get("transfer-encoding"), fields.values.get("content-length")
    if codings is not None:
        # It precedes Content-Length (RFC 9112, 6.3); the connection is not used again.
        if len(codings) != 1 or codings[0].lower() != "chunked":
            raise MalformedMessage("a Transfer-Encoding other than chunked")
        return ResponseHead(status, reason, fields, None, chunked=True)
    if lengths is None:
        return ResponseHead(status, reason, fields, None, chunked=False)
    if len(set(lengths)) != 1 or not _LENGTH.fullmatch(lengths[0]):
        raise MalformedMessage("a Content-Length that is not one number")
    return ResponseHead(status, reason, fields, int(lengths[0]), chunked=False)


def _field(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon or not _TOKEN.fullmatch(name):
        raise MalformedMessage("a header field without a name")
    return name.decode("ascii"), value.strip(b" \t").decode("latin-1")
