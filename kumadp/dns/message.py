"""DNS messages as bytes (RFC 1035, EDNS: RFC 6891): encodes and parses queries, encodes answers."""

from __future__ import annotations

import struct
from typing import NamedTuple

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
BADVERS = 16
A, AAAA, ANY, OPT, IN = 1, 28, 255, 41, 1
IXFR, AXFR = 251, 252

HEADER = struct.Struct("!6H")
"""Number, flags, and the counts of questions, answers, authority and additional records."""
QR, AUTHORITATIVE, TRUNCATED, DESIRED, CHECKING_DISABLED = 0x8000, 0x0400, 0x0200, 0x0100, 0x0010

_TYPE_AND_CLASS = struct.Struct("!HH")
A_IN, AAAA_IN = _TYPE_AND_CLASS.pack(A, IN), _TYPE_AND_CLASS.pack(AAAA, IN)
"""The end of a question: its type and class."""

PLAIN_SIZE = 512
"""Limit of a UDP answer to a client without EDNS (RFC 1035 4.2.1), in bytes."""
OUR_SIZE = 1232
"""Advertised to clients: fits in one packet on any network (DNS flag day 2020), in bytes."""
LARGEST_UDP = 4096
"""No UDP answer is larger, whatever size a client advertises, in bytes."""
LARGEST_NAME = 255
_OPCODE = 0x7800
_STATUS = 2 << 11
_WITHOUT_QUESTION = {FORMERR, SERVFAIL, NOTIMP, REFUSED}
_LABEL_MAX = 63
_FIXED = struct.Struct("!HHIH")
_MOST_ADDITIONAL = 8
_DNSSEC_OK = 0x8000


class Query(NamedTuple):
    """A well-formed query with one question.

    ``question`` has the client's bytes, ``name`` is its name in lower case, both in wire form. ``size`` is the largest
    UDP answer that the client accepts, in bytes; ``edns``: it has an OPT record; ``dnssec``: its DO bit is set.
    """

    number: int
    flags: int
    question: bytes
    name: bytes
    type: int
    klass: int
    size: int
    edns: bool
    dnssec: bool


def encode_query(name: str, kind: int = A, *, number: int = 0, recursion: bool = True) -> bytes:
    """Encode a query for the records of type ``kind`` of ``name``, whose letter case is kept; raises ValueError."""
    question = _encode_name(name) + _TYPE_AND_CLASS.pack(kind, IN)
    return HEADER.pack(number, DESIRED if recursion else 0, 1, 0, 0, 0) + question


def encode_status_query(number: int) -> bytes:
    """Encode a query with opcode STATUS and no question (RFC 1035 4.1.1); no known server implements it."""
    return HEADER.pack(number, _STATUS, 0, 0, 0, 0)


def question_of(query: bytes) -> bytes:
    """Return the question of a query that `encode_query` made."""
    return query[HEADER.size :]


def with_number(message: bytes, number: int) -> bytes:
    """Return the message with another number."""
    return number.to_bytes(2) + message[2:]


def with_question(message: bytes, question: bytes) -> bytes:
    """Return the message with its question replaced by one of the same length."""
    return message[: HEADER.size] + question + message[HEADER.size + len(question) :]


def lower_question(question: bytes) -> bytes:
    """Return the question with its name in lower case: names are equal in any case (RFC 4343)."""
    return question[: -_TYPE_AND_CLASS.size].lower() + question[-_TYPE_AND_CLASS.size :]


def parse_query(data: bytes) -> Query | bytes | None:
    """Parse what a client sent; never raises.

    Returns the answer to send if this is not a query that can be answered, and None if it must not be answered.
    """
    if len(data) < HEADER.size:
        return None
    number, flags, questions, answers, authorities, additional = HEADER.unpack_from(data)
    if flags & QR:
        # Two servers that answer each other's answers would do so forever.
        return None
    if flags & _OPCODE:
        return encode_header(number, flags, NOTIMP)
    end = _name_end(data, HEADER.size)
    if questions != 1 or answers or authorities or end == 0 or len(data) < end + 4:
        return encode_header(number, flags, FORMERR)
    question = data[HEADER.size : end + 4]
    size, edns, dnssec = PLAIN_SIZE, False, False
    if additional:
        options = _parse_opt(data, end + 4, additional)
        if options is None:
            return encode_header(number, flags, FORMERR)
        size, edns, extended = options
        dnssec = bool(extended & _DNSSEC_OK)
        if extended >> 16 & 0xFF:
            query = Query(number, flags, question, question[:-4].lower(), 0, 0, size, True, dnssec)
            return encode_answer(query, BADVERS)
    kind, klass = _TYPE_AND_CLASS.unpack_from(data, end)
    return Query(number, flags, question, question[:-4].lower(), kind, klass, size, edns, dnssec)


def encode_answer(
    query: Query,
    code: int,
    count: int = 0,
    records: bytes = b"",
    *,
    authoritative: bool = False,
    truncated: bool = False,
) -> bytes:
    """Encode an answer with ``count`` records; ``truncated``: some records were left out (TC)."""
    copied = query.flags & (DESIRED | CHECKING_DISABLED)
    flags = QR | copied | (AUTHORITATIVE if authoritative else 0) | (TRUNCATED if truncated else 0) | code & 0xF
    head = HEADER.pack(query.number, flags, 1, count, 0, 1 if query.edns else 0)
    if not query.edns:
        return head + query.question + records
    return head + query.question + records + encode_opt(dnssec=query.dnssec, code=code)


def encode_opt(*, dnssec: bool, code: int = 0) -> bytes:
    """Encode our OPT record, which carries the upper bits of ``code``."""
    extended = (code >> 4) << 24 | (_DNSSEC_OK if dnssec else 0)
    return b"\x00" + _FIXED.pack(OPT, OUR_SIZE, extended, 0)


def encode_header(number: int, flags: int, code: int) -> bytes:
    """Encode an answer without a question to a query with these ``flags``."""
    return HEADER.pack(number, QR | flags & (_OPCODE | DESIRED | CHECKING_DISABLED) | code, 0, 0, 0, 0)


def is_answer(data: bytes, number: int, question: bytes, *, any_case: bool = False) -> bool:
    """Return whether this answers the query with this number and question (RFC 5452, 9.1).

    ``any_case``: the letter case of the name may differ. Names are equal in any case (RFC 4343), and some servers
    normalize it.
    """
    end = HEADER.size + len(question)
    if len(data) < HEADER.size or int.from_bytes(data[:2]) != number or data[2] & 0xF8 != QR >> 8:
        return False
    if data[4:6] == b"\x00\x00":
        # A server that could not read the question may leave it out; one that answers it may not.
        return code_of(data) in _WITHOUT_QUESTION and len(data) == HEADER.size
    answered = data[HEADER.size : end]
    if any_case:
        answered, question = lower_question(answered), lower_question(question)
    return data[4:6] == b"\x00\x01" and answered == question


def code_of(answer: bytes) -> int:
    """Return the response code in the header."""
    return answer[3] & 0xF


def is_authoritative(answer: bytes) -> bool:
    """Return whether the AA bit is set."""
    return bool(answer[2] & AUTHORITATIVE >> 8)


def is_truncated(answer: bytes) -> bool:
    """Return whether the TC bit is set."""
    return bool(answer[2] & TRUNCATED >> 8)


def wire_name(text: str) -> bytes:
    """Encode a name in wire form and lower case, with or without its final dot; raises ValueError."""
    return _encode_name(text.lower())


def _encode_name(text: str) -> bytes:
    labels = text.removesuffix(".").encode("ascii").split(b".")
    if not all(0 < len(label) <= _LABEL_MAX for label in labels):
        raise ValueError(f"{text!r} is not a name")
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\x00"
    if len(wire) > LARGEST_NAME:
        raise ValueError(f"{text!r} is too long")
    return wire


def parents(name: bytes) -> list[bytes]:
    """Return a name in wire form and each name above it, without the root."""
    names = []
    while name[0]:
        names.append(name)
        name = name[1 + name[0] :]
    return names


def _name_end(data: bytes, start: int) -> int:
    """Return the offset behind the name at ``start``; 0 if there is no name.

    Compression is not accepted: nothing is in front of a question that it could point to.
    """
    at = start
    while at < len(data):
        length = data[at]
        if length > _LABEL_MAX:
            return 0
        at += 1 + length
        if at - start > LARGEST_NAME:
            return 0
        if length == 0:
            return at
    return 0


def _parse_opt(data: bytes, at: int, count: int) -> tuple[int, bool, int] | None:
    """Return size, presence and flags of the OPT record; None if the additional records are malformed."""
    size, edns, extended = PLAIN_SIZE, False, 0
    if count > _MOST_ADDITIONAL:
        return None
    for _ in range(count):
        end = _name_end(data, at)
        if end == 0 or len(data) < end + _FIXED.size:
            return None
        kind, klass, ttl, length = _FIXED.unpack_from(data, end)
        if kind == OPT:
            if edns or end != at + 1:
                return None
            size, edns, extended = min(max(klass, PLAIN_SIZE), LARGEST_UDP), True, ttl
        at = end + _FIXED.size + length
        if at > len(data):
            return None
    return size, edns, extended
