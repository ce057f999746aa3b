"""Answers as bytes, compared with what dnspython parses from them."""

from __future__ import annotations

import struct
from typing import Literal

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumadp.dns.message import Query, is_answer, parse_query
from kumadp.dns.resolver.answer import Forward, answer, fast_answer, relayed_answer
from kumadp.dns.resolver.table import Table

MANY = [f"240.0.{number // 250}.{number % 250 + 1}" for number in range(60)]
TABLE = Table(
    [
        ("backend.mesh", ["240.0.0.1"]),
        ("both.mesh", ["240.0.0.2", "fd00::2"]),
        ("web.svc.zone.mesh.local", ["240.0.0.3"]),
        ("many.mesh", MANY),
    ],
    ttl=30,
    suffixes=("mesh", "mesh.local"),
)


def reply_to(name: str, kind: str = "A", *, transport: Literal["udp", "tcp"] = "udp", edns: int | None = None) -> bytes:
    """Encode a query, and return the answer of the server to it."""
    wire = dns.message.make_query(name, kind, use_edns=edns is not None and 0, payload=edns or 0).to_wire()
    reply = (fast_answer(wire, TABLE) if transport == "udp" else None) or answer(wire, TABLE, transport)
    assert isinstance(reply, bytes)
    parsed = dns.message.from_wire(reply)
    assert parsed.id == struct.unpack_from("!H", wire)[0]
    assert parsed.question[0].to_text() == dns.message.from_wire(wire).question[0].to_text()
    assert parsed.flags & (dns.flags.QR | dns.flags.AA | dns.flags.RD) == dns.flags.QR | dns.flags.AA | dns.flags.RD
    assert (parsed.edns == 0) == (edns is not None)
    return reply


def texts(wire: bytes) -> list[str]:
    return [item.to_text() for rrset in dns.message.from_wire(wire).answer for item in rrset]


@pytest.mark.parametrize("edns", [None, 512, 1232, 4096])
@pytest.mark.parametrize("name", ["backend.mesh", "BaCkEnD.mEsH"])
def test_a_name_in_any_case_with_the_clients_own_letters(name: str, edns: int | None) -> None:
    wire = reply_to(name, edns=edns)
    assert texts(wire) == ["240.0.0.1"]
    rrset = dns.message.from_wire(wire).answer[0]
    assert (rrset.name.to_text(), rrset.ttl) == (f"{name}.", 30)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("both.mesh", "AAAA", ["fd00::2"]),
        ("both.mesh", "ANY", ["240.0.0.2"]),
        ("backend.mesh", "AAAA", []),
        ("backend.mesh", "MX", []),
        ("backend.mesh", "TYPE65", []),
        ("svc.zone.mesh.local", "A", []),
    ],
)
def test_a_name_of_the_table_without_such_records_is_not_nxdomain(name: str, kind: str, expected: list[str]) -> None:
    for transport in ("udp", "tcp"):
        wire = reply_to(name, kind, transport=transport)
        assert dns.message.from_wire(wire).rcode() == dns.rcode.NOERROR
        assert texts(wire) == expected


@pytest.mark.parametrize(("edns", "expected"), [(None, 29), (512, 29), (100, 29), (700, 40), (1232, 60), (65535, 60)])
def test_sixty_addresses_by_udp_are_truncated_to_the_size_of_the_client(edns: int | None, expected: int) -> None:
    wire = reply_to("many.mesh", edns=edns)
    assert len(wire) <= max(edns or 0, 512)
    addresses = texts(wire)
    assert abs(len(addresses) - expected) <= 1
    assert addresses == MANY[: len(addresses)]
    assert bool(dns.message.from_wire(wire).flags & dns.flags.TC) == (len(addresses) < 60)


def test_sixty_addresses_by_tcp_are_all_there() -> None:
    wire = reply_to("many.mesh", transport="tcp")
    assert texts(wire) == MANY
    assert not dns.message.from_wire(wire).flags & dns.flags.TC


def test_unknown_names_below_our_suffixes_do_not_exist_and_are_never_forwarded() -> None:
    for name in ("nobody.mesh", "NOBODY.MESH", "x.backend.mesh", "mesh.local.mesh", "a.mesh.local"):
        assert dns.message.from_wire(reply_to(name)).rcode() == dns.rcode.NXDOMAIN
    for name in ("example.com", "xmesh", "mesh.com", "."):
        assert isinstance(answer(dns.message.make_query(name, "A").to_wire(), TABLE, "udp"), Forward)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (dns.message.make_query("backend.mesh", "A", rdclass="CH"), dns.rcode.REFUSED),
        (dns.message.make_query("backend.mesh", "AXFR"), dns.rcode.REFUSED),
        (dns.message.make_query("backend.mesh", "A", use_edns=1), dns.rcode.BADVERS),
    ],
)
def test_unsupported_queries_are_refused(query: dns.message.Message, expected: int) -> None:
    reply = answer(query.to_wire(), TABLE, "udp")
    assert isinstance(reply, bytes)
    assert dns.message.from_wire(reply).rcode() == expected


def test_other_messages_than_queries() -> None:
    wire = dns.message.make_query("backend.mesh", "A").to_wire()
    assert answer(wire[:2] + b"\x81" + wire[3:], TABLE, "udp") is None, "an answer is not answered"
    for broken, code in (
        (wire[:2] + struct.pack("!5H", 2 << 11, 0, 0, 0, 0), dns.rcode.NOTIMP),
        (wire[:-1], dns.rcode.FORMERR),
        (wire[:5] + b"\x02" + wire[6:], dns.rcode.FORMERR),
        (wire[:12] + b"\xc0\x0c\x00\x01\x00\x01", dns.rcode.FORMERR),
        (wire[:11] + b"\x01" + wire[12:], dns.rcode.FORMERR),
    ):
        reply = answer(broken, TABLE, "udp")
        assert isinstance(reply, bytes)
        assert (reply[:2], reply[3] & 0xF, len(reply)) == (wire[:2], code, 12)


def test_a_table_reports_names_that_it_cannot_use() -> None:
    table = Table([("a.mesh", ["240.0.0.1", "no"]), ("b..mesh", []), ("x" * 64, []), ("ü.mesh", []), ("Ok.mesh.", [])])
    assert len(table) == 1
    assert table.wrong == ["a.mesh", "b..mesh", "x" * 64, "ü.mesh"]


def test_a_relayed_answer_gets_the_clients_number_and_case_and_is_truncated() -> None:
    original = dns.message.make_query("WWW.example.com", "A")
    query = parse_query(original.to_wire())
    assert isinstance(query, Query)
    lower = dns.message.make_query("www.example.com", "A", id=(original.id + 1) % 65536)
    reply = dns.message.make_response(lower)
    relayed = dns.message.from_wire(relayed_answer(query, reply.to_wire(), "udp"))
    assert (relayed.id, relayed.question[0].name.to_text()) == (original.id, "WWW.example.com.")
    large = relayed_answer(query, reply.to_wire() + bytes(600), "udp")
    assert dns.message.from_wire(large).flags & dns.flags.TC
    assert len(relayed_answer(query, reply.to_wire() + bytes(600), "tcp")) > 600


def test_only_an_answer_to_the_query_is_accepted() -> None:
    query = dns.message.make_query("WWW.example.com", "A", id=7)
    question = query.to_wire()[12:]
    reply = dns.message.make_response(query).to_wire()
    assert is_answer(reply, 7, question)
    assert not is_answer(reply, 8, question)
    assert not is_answer(reply.replace(b"WWW", b"www"), 7, question)
    assert is_answer(reply.replace(b"WWW", b"www"), 7, question, any_case=True)
    for wrong in (reply.replace(b"WWW", b"XWW"), reply[:-1] + b"\x03", reply[:-3] + b"\x1c" + reply[-2:]):
        assert not is_answer(wrong, 7, question)
        assert not is_answer(wrong, 7, question, any_case=True)
    without = {code: reply[:3] + bytes([code]) + bytes(8) for code in range(6)}
    assert [code for code, header in without.items() if is_answer(header, 7, question)] == [1, 2, 4, 5]
    assert not is_answer(query.to_wire(), 7, question), "a query"
    assert not is_answer(reply[:10], 7, question)
    assert not is_answer(b"", 7, question)


names = st.sampled_from(["backend.mesh", "BOTH.mesh", "many.mesh", "nobody.mesh", "example.com", "mesh", "."])
kinds = st.sampled_from(["A", "AAAA", "ANY", "MX", "TXT", "AXFR", "OPT"])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A query with some bytes changed, left out or added."""
    wire = bytearray(
        dns.message.make_query(
            draw(names), draw(kinds), use_edns=draw(st.sampled_from([False, 0])), want_dnssec=draw(st.booleans())
        ).to_wire()
    )
    for _ in range(draw(st.integers(0, 4))):
        wire[draw(st.integers(0, len(wire) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.integers(0, len(wire)))
    return bytes(wire[:cut] if draw(st.booleans()) else wire) + draw(st.binary(max_size=12))


@settings(max_examples=1500, deadline=None)
@given(data=st.one_of(st.binary(max_size=600), damaged()), transport=st.sampled_from(["udp", "tcp"]))
def test_hostile_bytes_get_a_valid_answer_or_none(data: bytes, transport: Literal["udp", "tcp"]) -> None:
    fast, reply = fast_answer(data, TABLE), answer(data, TABLE, transport)
    if fast is not None:
        assert fast == answer(data, TABLE, "udp")
    if isinstance(reply, Forward):
        reply = relayed_answer(reply.query, reply.query.number.to_bytes(2) + data[2:], transport)
    if reply is None:
        return
    assert reply[:2] == data[:2]
    assert transport == "tcp" or len(reply) <= 4096
    try:
        query = dns.message.from_wire(data)
    except Exception:
        return
    if isinstance(answer(data, TABLE, transport), Forward) or len(reply) == 12 or not reply[2] & 0x80:
        return
    parsed = dns.message.from_wire(reply)
    assert parsed.question[0].name.to_text() == query.question[0].name.to_text()
    for rrset in parsed.answer:
        assert rrset.name == query.question[0].name
        assert rrset.rdtype in {query.question[0].rdtype, *((1, 28) if query.question[0].rdtype == 255 else ())}
