"""What is answered to a query from a table, and what has to be asked of others: no socket, no clock."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal, NamedTuple

from kumadp.dns import message
from kumadp.dns.coredns.corefile import HEALTH_NAME
from kumadp.dns.message import IN, NOERROR, NXDOMAIN, REFUSED, Query, read, write
from kumadp.dns.resolver.table import A_SIZE, AAAA_SIZE

if TYPE_CHECKING:
    from kumadp.dns.resolver.table import Table

Transport = Literal["udp", "tcp"]


class Forward(NamedTuple):
    """Somebody else is to be asked; ``ours``: Envoy's DNS filter alone."""

    query: Query
    ours: bool


# A header after the number, and the same of the answer up to the counts: one question of a client that wants recursion
# or not, with AD and CD or not. With an OPT record in the second.
_PLAIN: dict[bytes, bytes] = {}
_EDNS: dict[bytes, bytes] = {}
for _desired in (0, message.DESIRED):
    for _bits in (0x00, 0x10, 0x20, 0x30):
        _flags = struct.pack("!H", message.QR | message.AUTHORITATIVE | _desired | _bits & message.CHECKING_DISABLED)
        _PLAIN[struct.pack("!5H", _desired | _bits, 1, 0, 0, 0)] = _flags
        _EDNS[struct.pack("!5H", _desired | _bits, 1, 0, 0, 1)] = _flags
_A_IN, _AAAA_IN = struct.pack("!HH", message.A, IN), struct.pack("!HH", message.AAAA, IN)
_OUR_OPT = message.opt(dnssec=False)
_OPT_KIND = b"\x00\x00\x29"
_HEALTH_NAME = message.wire_name(HEALTH_NAME)
# Queries differ in case and flags too, so that a client could make very many.
_MOST_READY = 10_000


def quick(data: bytes, table: Table) -> bytes | None:
    """The answer to a plain query by UDP for a name of the table, None for everything else: most queries, in little.

    What was answered once is answered from its bytes, but for the number.
    """
    ready = table.ready.get(data[2:])
    if ready is not None:
        return data[:2] + ready
    ready = _quick(data, table)
    if ready is None:
        return None
    if len(table.ready) < _MOST_READY:
        table.ready[data[2:]] = ready
    return data[:2] + ready


def _quick(data: bytes, table: Table) -> bytes | None:
    """All of the answer but its number.

    A question that is found is one that was read right: the key has each byte of the name.
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
    found = table.names.get(data[12 : end - 4].lower())
    kind = data[end - 4 : end]
    at = 0 if kind == _A_IN else 2 if kind == _AAAA_IN else None
    if found is None or at is None or len(data) + len(found[at + 1]) > message.PLAIN_SIZE:
        return None
    return flags + found[at][:-1] + counts_end + data[12:end] + found[at + 1] + additional


def answer(data: bytes, table: Table, transport: Transport) -> bytes | Forward | None:
    """The answer, whom to ask, or None for what is not answered at all. Never an exception."""
    query = read(data)
    if not isinstance(query, Query):
        return query
    if query.klass != IN or query.type in {message.AXFR, message.IXFR}:
        return write(query, REFUSED)
    found = table.names.get(query.name)
    if found is None:
        if query.name == _HEALTH_NAME:
            # No name server refuses with authority: which distinguishes kumadp's own answer from others.
            return write(query, REFUSED, authoritative=True)
        if query.name in table.empty and not table.filtered:
            return write(query, NOERROR, authoritative=True)
        ours = table.is_ours(query.name)
        if ours and not table.filtered:
            return write(query, NXDOMAIN, authoritative=True)
        return Forward(query, ours)
    if query.type == message.A or (query.type == message.ANY and found[1]):
        # Of all types one is enough of an answer (RFC 8482).
        records, size = found[1], A_SIZE
    elif query.type in {message.AAAA, message.ANY}:
        records, size = found[3], AAAA_SIZE
    else:
        return write(query, NOERROR, authoritative=True)
    room = 0xFFFF if transport == "tcp" else query.size
    room -= message.HEADER.size + len(query.question) + (len(_OUR_OPT) if query.edns else 0)
    number = len(records) // size
    count = min(number, room // size)
    return write(query, NOERROR, count, records[: count * size], authoritative=True, cut=count < number)


def fitting(query: Query, reply: bytes, transport: Transport) -> bytes:
    """Another server's answer as this client gets it: with its number, in its letters, cut where it is too large."""
    end = message.HEADER.size + len(query.question)
    if len(reply) < end:
        return write(query, message.code_of(reply))
    if transport == "udp" and len(reply) > query.size:
        return write(query, message.code_of(reply), cut=True)
    return query.number.to_bytes(2) + reply[2 : message.HEADER.size] + query.question + reply[end:]
