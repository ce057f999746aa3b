"""DNS messages by their bytes (RFC 1035, EDNS: RFC 6891): a query is read, an answer written, and nothing else is."""

from __future__ import annotations

import struct
from typing import NamedTuple

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
BADVERS = 16
A, AAAA, ANY, OPT, IN = 1, 28, 255, 41, 1
IXFR, AXFR = 251, 252

HEADER = struct.Struct("!6H")
"""Number, flags, and how many questions, answers, authorities and additional records follow."""
QR, AUTHORITATIVE, TRUNCATED, DESIRED, CHECKING_DISABLED = 0x8000, 0x0400, 0x0200, 0x0100, 0x0010

PLAIN_SIZE = 512
"""What a UDP answer may have where the client names no size (RFC 1035 4.2.1)."""
OUR_SIZE = 1232
"""What crosses any network in one packet (DNS flag day 2020); told to clients."""
LARGEST_UDP = 4096
"""No UDP answer is larger, whatever a client says."""
LARGEST_NAME = 255
_OPCODE = 0x7800
_WITHOUT_QUESTION = {FORMERR, SERVFAIL, NOTIMP, REFUSED}
_LABEL_MAX = 63
_FIXED = struct.Struct("!HHIH")
_MOST_ADDITIONAL = 8
_DNSSEC_OK = 0x8000


class Query(NamedTuple):
    """A well-formed query of one question: ``question`` as it came, ``name`` of it in lower case, both as on the wire.

    ``size`` is what the client takes by UDP; ``edns`` whether it has an OPT record, ``dnssec`` what that says.
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


def read(data: bytes) -> Query | bytes | None:
    """The query; or the answer to what is none; or None for what must not be answered. Never an exception."""
    if len(data) < HEADER.size:
        return None
    number, flags, questions, answers, authorities, additional = HEADER.unpack_from(data)
    if flags & QR:
        # Two servers that answer each other would do so for ever.
        return None
    if flags & _OPCODE:
        return bare(number, flags, NOTIMP)
    end = _name_end(data, HEADER.size)
    if questions != 1 or answers or authorities or end == 0 or len(data) < end + 4:
        return bare(number, flags, FORMERR)
    question = data[HEADER.size : end + 4]
    size, edns, dnssec = PLAIN_SIZE, False, False
    if additional:
        found = _read_opt(data, end + 4, additional)
        if found is None:
            return bare(number, flags, FORMERR)
        size, edns, extended = found
        dnssec = bool(extended & _DNSSEC_OK)
        if extended >> 16 & 0xFF:
            query = Query(number, flags, question, question[:-4].lower(), 0, 0, size, True, dnssec)
            return write(query, BADVERS)
    kind, klass = struct.unpack_from("!HH", data, end)
    return Query(number, flags, question, question[:-4].lower(), kind, klass, size, edns, dnssec)


def write(
    query: Query, code: int, count: int = 0, records: bytes = b"", *, authoritative: bool = False, cut: bool = False
) -> bytes:
    """An answer with ``count`` records; ``cut``: it has not all of them."""
    kept = query.flags & (DESIRED | CHECKING_DISABLED)
    flags = QR | kept | (AUTHORITATIVE if authoritative else 0) | (TRUNCATED if cut else 0) | code & 0xF
    head = HEADER.pack(query.number, flags, 1, count, 0, 1 if query.edns else 0)
    if not query.edns:
        return head + query.question + records
    return head + query.question + records + opt(dnssec=query.dnssec, code=code)


def opt(*, dnssec: bool, code: int = 0) -> bytes:
    """Our OPT record; ``code``: the upper bits are in it."""
    extended = (code >> 4) << 24 | (_DNSSEC_OK if dnssec else 0)
    return b"\x00" + _FIXED.pack(OPT, OUR_SIZE, extended, 0)


def bare(number: int, flags: int, code: int) -> bytes:
    """An answer without a question."""
    return HEADER.pack(number, QR | flags & (_OPCODE | DESIRED | CHECKING_DISABLED) | code, 0, 0, 0, 0)


def answers(data: bytes, number: int, question: bytes, *, any_case: bool = False) -> bool:
    """Whether this is the answer to the query with that number: for the same question (RFC 5452, 9.1).

    ``any_case``: also to its name in other letters; names are the same in any case (RFC 4343), and some servers write
    them in their own.
    """
    end = HEADER.size + len(question)
    if len(data) < HEADER.size or int.from_bytes(data[:2]) != number or data[2] & 0xF8 != QR >> 8:
        return False
    if data[4:6] == b"\x00\x00":
        # A server that could not read the question may leave it out, not one that answers it.
        return code_of(data) in _WITHOUT_QUESTION and len(data) == HEADER.size
    theirs = data[HEADER.size : end]
    if any_case:
        theirs = theirs[:-4].lower() + theirs[-4:]
        question = question[:-4].lower() + question[-4:]
    return data[4:6] == b"\x00\x01" and theirs == question


def code_of(answer: bytes) -> int:
    """The code in the header."""
    return answer[3] & 0xF


def is_authoritative(answer: bytes) -> bool:
    """Whether it is so marked."""
    return bool(answer[2] & AUTHORITATIVE >> 8)


def is_cut(answer: bytes) -> bool:
    """Whether it was truncated."""
    return bool(answer[2] & TRUNCATED >> 8)


def wire_name(text: str) -> bytes:
    """A name as on the wire, in lower case, its final dot there or not; raises ValueError."""
    labels = text.removesuffix(".").lower().encode("ascii").split(b".")
    if not all(0 < len(label) <= _LABEL_MAX for label in labels):
        raise ValueError(f"{text!r} is no name")
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\x00"
    if len(wire) > LARGEST_NAME:
        raise ValueError(f"{text!r} is too long")
    return wire


def parents(name: bytes) -> list[bytes]:
    """The name and each one above it, without the root, as on the wire."""
    found = []
    while name[0]:
        found.append(name)
        name = name[1 + name[0] :]
    return found


def _name_end(data: bytes, at: int) -> int:
    """Where the type follows; 0 where there is no name. A question has nothing before it that it could point to."""
    start = at
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


def _read_opt(data: bytes, at: int, count: int) -> tuple[int, bool, int] | None:
    """Size, whether there is an OPT record, its flags; None where the additional records are broken."""
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
