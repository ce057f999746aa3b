"""Which headers of a probe are forwarded."""

from __future__ import annotations

import pytest

from kumadp.host.net.http1.fields import FieldList
from kumadp.probes.headers import forwarded, hop_by_hop, is_text


def test_headers_that_connection_names_are_hop_by_hop() -> None:
    headers = FieldList([("Connection", "close, X-Private ,")])
    assert {"connection", "te", "upgrade", "close", "x-private"} <= hop_by_hop(headers)
    assert "x-private" not in hop_by_hop(FieldList())


def test_own_headers_and_the_length_of_the_body_are_removed() -> None:
    headers = FieldList(
        [
            ("Host", "web.example"),
            ("Content-Length", "3"),
            ("Connection", "X-Private"),
            ("X-Private", "1"),
            ("X-Kuma-Probes-Timeout", "5"),
            ("Accept", "a"),
            ("Accept", "b"),
        ]
    )
    assert forwarded(headers) == [("Host", "web.example"), ("Accept", "a"), ("Accept", "b")]


@pytest.mark.parametrize(
    ("value", "valid"), [("", True), ("a\tb", True), ("ä", True), ("a\nb", False), ("\x00", False), ("\x7f", False)]
)
def test_control_characters_are_not_text(value: str, valid: bool) -> None:
    assert is_text(value) is valid
