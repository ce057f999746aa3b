"""The demo's DNS query, for hosts without dig."""

from __future__ import annotations

import dns.message
import dns.rrset
import pytest

from kumadp.cli.demo.dns import DnsAnswer, DnsAnswerError, decode_answer
from kumadp.dns.message import encode_query


def test_the_query_equals_that_of_dnspython() -> None:
    question = dns.message.from_wire(encode_query("backend.mesh", number=7))
    assert question.id == 7
    assert [str(record) for record in question.question] == ["backend.mesh. IN A"]


def test_addresses_and_code_of_an_answer() -> None:
    question = dns.message.from_wire(encode_query("backend.mesh", number=7))
    answer = dns.message.make_response(question)
    answer.answer.append(dns.rrset.from_text("backend.mesh.", 60, "IN", "A", "127.0.0.1", "127.0.0.3"))
    decoded = decode_answer(7, answer.to_wire())
    assert DnsAnswer(decoded.code, tuple(sorted(decoded.addresses))) == DnsAnswer(0, ("127.0.0.1", "127.0.0.3"))


@pytest.mark.parametrize(
    "message", [b"", b"\x00\x07", encode_query("backend.mesh", number=7), b"\x00\x07\x80\x00\x00\x09"]
)
def test_a_malformed_answer_is_an_error(message: bytes) -> None:
    with pytest.raises(DnsAnswerError):
        decode_answer(7, message)


def test_an_answer_to_another_question_is_an_error() -> None:
    answer = dns.message.make_response(dns.message.from_wire(encode_query("backend.mesh", number=7)))
    with pytest.raises(DnsAnswerError):
        decode_answer(8, answer.to_wire())
