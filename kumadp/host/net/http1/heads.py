"""Parsers of the heads of HTTP/1.1 messages: pure, in linear time, bounded by the caller in bytes and here in fields.

Requests are parsed as strictly as RFC 9112 allows, since two programs that read one differently can be deceived:
each line ends in CRLF, no field is continued on a second line, and the length of the body is stated once. Responses
are parsed as Go's net/http does, with which kubelet probes: a line may end in LF alone, and a field may be continued.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from msgspec import Struct

from kumadp.host.net.http1.fields import MAX_TOKENS, FieldList

MAX_REQUEST_LINE = 8190
MAX_REQUEST_FIELDS = 128
MAX_RESPONSE_FIELDS = 512
_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(
    # The target is in origin, absolute or asterisk form (RFC 9112, 3.2).
    rf"({_NAME}{{1,32}}) ((?:/|[A-Za-z][A-Za-z0-9+.-]{{0,15}}://)[!-~]*|\*) HTTP/1\.([01])"
)
_STATUS_LINE = re.compile(r"HTTP/1\.[0-9] +([1-9][0-9][0-9])(?: ([^\n]*))?\r?")
# Fields and their ends; nothing is looked at twice. A line of a request ends in CRLF, one of a response in LF too.
_VALUE = r"[^\x00-\x08\x0a-\x1f\x7f]*+"
_STRICT_FIELD = re.compile(rf"\r\n({_NAME}++):({_VALUE})")
_STRICT_FIELDS = re.compile(rf"(?:\r\n{_NAME}++:{_VALUE})*+")
_FIELD = re.compile(rf"\n({_NAME}++):([^\n]*+)")
_FIELDS = re.compile(rf"(?:\n{_NAME}++:[^\n]*+)*+")
# The continuation of a field on a further line.
_FOLD = re.compile(r"\r?\n[ \t]+")
_LENGTH = re.compile(r"[0-9]{1,18}")
# kubelet sends the same bytes again and again; heads up to this size are remembered.
_REPEATED = 1024


class MalformedMessage(ValueError):
    """A message that cannot be parsed; the text is the reason, without anything of the message."""


class RequestHead(Struct, frozen=True, eq=False):
    """A request without its body. ``length`` is the body's in bytes, None if it is chunked.

    Equal to itself alone; that of bytes which were received before is the same object.
    """

    method: str
    target: str
    minor: int
    fields: FieldList
    length: int | None
    keep_alive: bool


class ResponseHead(NamedTuple):
    """A response without its body. ``length`` is the body's in bytes; None: chunked, or until the connection ends."""

    status: int
    reason: str
    fields: FieldList
    length: int | None
    chunked: bool


def parse_request_head(head: bytes) -> RequestHead:
    """Parse a request's head without the empty line at its end. Raises MalformedMessage."""
    return _parse_repeated(head) if len(head) <= _REPEATED else _parse_request_head(head)


def _parse_request_head(head: bytes) -> RequestHead:
    text = head.decode("latin-1")
    end = text.find("\r\n")
    if end < 0:
        end = len(text)
    if end > MAX_REQUEST_LINE:
        raise MalformedMessage(f"a request line of more than {MAX_REQUEST_LINE} bytes")
    first = _REQUEST_LINE.fullmatch(text, 0, end)
    if first is None:
        raise MalformedMessage("no request line of HTTP/1.0 or HTTP/1.1")
    if text.count("\r\n") > MAX_REQUEST_FIELDS:
        raise MalformedMessage(f"more than {MAX_REQUEST_FIELDS} header fields")
    if not _STRICT_FIELDS.fullmatch(text, end):
        raise MalformedMessage("a malformed header field: its name, a control character, or the end of its line")
    fields = FieldList([(name, value.strip(" \t")) for name, value in _STRICT_FIELD.findall(text, end)])
    minor = 1 if first[3] == "1" else 0
    hosts = len(fields.values.get("host", ()))
    if hosts > 1 or (minor and not hosts):
        # RFC 9112, 3.2.
        raise MalformedMessage("no Host field, or more than one")
    if any(value.count(",") >= MAX_TOKENS for value in fields.values.get("connection", ())):
        raise MalformedMessage(f"more than {MAX_TOKENS} elements of Connection")
    tokens = fields.tokens("connection")
    length = _request_length(fields, minor)
    keep_alive = "close" not in tokens and (minor == 1 or "keep-alive" in tokens)
    return RequestHead(first[1], first[2], minor, fields, length, keep_alive)


_parse_repeated = functools.lru_cache(64)(_parse_request_head)


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
    text = head.decode("latin-1")
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    end = text.find("\n")
    if end < 0:
        end = len(text)
    first = _STATUS_LINE.fullmatch(text, 0, end)
    if first is None:
        raise MalformedMessage("no status line")
    if text.count("\n") > MAX_RESPONSE_FIELDS:
        raise MalformedMessage(f"more than {MAX_RESPONSE_FIELDS} header fields")
    if not _FIELDS.fullmatch(text, end):
        raise MalformedMessage("a header field without a name")
    # A carriage return before the end of the line is white space here.
    fields = FieldList([(name, value.strip(" \t\r")) for name, value in _FIELD.findall(text, end)])
    status, reason = int(first[1]), (first[2] or "").strip(" \t\r")
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
