"""Answers queries from a table, and decides which must be forwarded: no socket, no clock."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal, NamedTuple

from kumadp.dns import message
from kumadp.dns.coredns.corefile import HEALTH_NAME
from kumadp.dns.message import A_IN, AAAA_IN, IN, NOERROR, NXDOMAIN, REFUSED, Query, encode_answer, parse_query
from kumadp.dns.resolver.table import A_SIZE, AAAA_SIZE

if TYPE_CHECKING:
    from kumadp.dns.resolver.table import Table

Transport = Literal["udp", "tcp"]


class Forward(NamedTuple):
    """A query that another server must answer; ``in_mesh``: only Envoy's DNS filter may be queried."""

    query: Query
    in_mesh: bool


# Maps a query's header without its number to the flags of the answer: one question, with or without RD, AD and CD.
# _EDNS has the headers with one additional record, the OPT record.
_PLAIN: dict[bytes, bytes] = {}
_EDNS: dict[bytes, bytes] = {}
for _desired in (0, message.DESIRED):
    for _bits in (0x00, 0x10, 0x20, 0x30):
        _flags = struct.pack("!H", message.QR | message.AUTHORITATIVE | _desired | _bits & message.CHECKING_DISABLED)
        _PLAIN[struct.pack("!5H", _desired | _bits, 1, 0, 0, 0)] = _flags
        _EDNS[struct.pack("!5H", _desired | _bits, 1, 0, 0, 1)] = _flags
_OUR_OPT = message.encode_opt(dnssec=False)
_OPT_KIND = b"\x00\x00\x29"
_HEALTH_NAME = message.wire_name(HEALTH_NAME)
# Queries differ in letter case and flags too: a client could create very many.
_MOST_CACHED = 10_000


def fast_answer(data: bytes, table: Table) -> bytes | None:
    """Answer a plain UDP query for a name of the table, and return None for any other: the common case, optimised.

    The answer is cached in the table by the bytes of the query, without its number; `UdpSocket` looks there first.
    """
    answer = _fast_answer(data, table)
    if answer is None:
        return None
    if len(table.cache) < _MOST_CACHED:
        table.cache[data[2:]] = answer
    return data[:2] + answer


def _fast_answer(data: bytes, table: Table) -> bytes | None:
    """Return the answer without its number.

    The name needs no parsing: the table's key has each byte of it, so a name that is a key is well-formed.
    """
    flags = _PLAIN.get(data[2:12])
    if flags is not None:
        end, counts_end, additional = len(data), b"\x00", b""
    else:
        flags = _EDNS.get(data[2:12])
        # An OPT record without options and flags is the last 11 bytes.
        if flags is None or data[-11:-8] != _OPT_KIND or data[-6:] != b"\x00\x00\x00\x00\x00\x00":
            return None
        end, counts_end, additional = len(data) - len(_OUR_OPT), b"\x01", _OUR_OPT
    addresses = table.names.get(data[12 : end - 4].lower())
    kind = data[end - 4 : end]
    at = 0 if kind == A_IN else 2 if kind == AAAA_IN else None
    if addresses is None or at is None or len(data) + len(addresses[at + 1]) > message.PLAIN_SIZE:
        return None
    return flags + addresses[at][:-1] + counts_end + data[12:end] + addresses[at + 1] + additional


def answer(data: bytes, table: Table, transport: Transport) -> bytes | Forward | None:
    """Return the answer, the query to forward, or None if it must not be answered. Never raises."""
    query = parse_query(data)
    if not isinstance(query, Query):
        return query
    if query.klass != IN or query.type in {message.AXFR, message.IXFR}:
        return encode_answer(query, REFUSED)
    addresses = table.names.get(query.name)
    if addresses is None:
        if query.name == _HEALTH_NAME:
            # No name server refuses with the AA bit set: this distinguishes kumadp's answer from theirs.
            return encode_answer(query, REFUSED, authoritative=True)
        if query.name in table.empty and not table.filtered:
            return encode_answer(query, NOERROR, authoritative=True)
        in_mesh = table.is_in_mesh(query.name)
        if in_mesh and not table.filtered:
            return encode_answer(query, NXDOMAIN, authoritative=True)
        return Forward(query, in_mesh)
    if query.type == message.A or (query.type == message.ANY and addresses[1]):
        # One type is enough of an answer to a query for all types (RFC 8482).
        records, size = addresses[1], A_SIZE
    elif query.type in {message.AAAA, message.ANY}:
        records, size = addresses[3], AAAA_SIZE
    else:
        return encode_answer(query, NOERROR, authoritative=True)
    room = 0xFFFF if transport == "tcp" else query.size
    room -= message.HEADER.size + len(query.question) + (len(_OUR_OPT) if query.edns else 0)
    number = len(records) // size
    count = min(number, room // size)
    return encode_answer(query, NOERROR, count, records[: count * size], authoritative=True, truncated=count < number)


def relayed_answer(query: Query, reply: bytes, transport: Transport) -> bytes:
    """Return another server's answer for the client: its number, its letter case, truncated if too large for it."""
    if len(reply) < message.HEADER.size + len(query.question):
        return encode_answer(query, message.code_of(reply))
    if transport == "udp" and len(reply) > query.size:
        return encode_answer(query, message.code_of(reply), truncated=True)
    return message.with_question(message.with_number(reply, query.number), query.question)
