"""Addresses as texts."""

from __future__ import annotations

import pytest

from kumadp.addresses import is_ip, is_loopback, overlap, quoted_path


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "10.0.0.1", True),
        ("0.0.0.0", "0.0.0.0", True),
        ("10.0.0.1", "::", True),
        ("::1", "::", True),
        ("0.0.0.0", "::1", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_wildcards_take_every_address_of_their_kind(one: str, other: str, same: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is same


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("::ffff:192.0.2.1", False),
        ("192.0.2.1", False),
        ("0.0.0.0", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_is_for_this_host_alone(host: str, private: bool) -> None:
    assert is_loopback(host) is private


@pytest.mark.parametrize(("host", "found"), [("192.0.2.1", True), ("::", True), ("web", False), ("1.2.3", False)])
def test_names_are_no_addresses(host: str, found: bool) -> None:
    assert is_ip(host) is found


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/a/b", "/a/b"),
        ("/a b", "/a%20b"),
        ("/a%20b%2Fc", "/a%20b%2Fc"),
        ("/100%", "/100%25"),
        ("/a\r\nX: y", "/a%0D%0AX:%20y"),
        ("/ä#x?", "/%C3%A4%23x%3F"),
        ("//a/../b;c=d", "//a/../b;c=d"),
    ],
)
def test_a_path_goes_out_as_written(path: str, sent: str) -> None:
    assert quoted_path(path) == sent
