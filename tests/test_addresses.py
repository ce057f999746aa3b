"""Addresses as texts."""

from __future__ import annotations

import socket

import pytest

from kumadp.addresses import (
    address_text,
    authority,
    connect_address,
    dialled_host,
    is_host_name,
    is_ip,
    is_loopback,
    overlap,
    quoted_path,
    server_name,
    socket_address,
)


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
        ("::1", "0:0::0001", True),
        ("0:0::0", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "0.0.0.0", True),
        ("fe80::1%eth0", "fe80::1%eth0", True),
        ("fe80::1%eth0", "fe80::1%eth1", False),
        ("fe80::1%eth0", "fe80::1", True),
        ("fe80::1%eth0", "fe80::2", False),
        ("fe80::1%eth0", "::", True),
        ("web", "web", True),
        ("web", "0.0.0.0", True),
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


@pytest.mark.parametrize(("host", "actual"), [("192.0.2.1", True), ("::", True), ("web", False), ("1.2.3", False)])
def test_names_are_no_addresses(host: str, actual: bool) -> None:
    assert is_ip(host) is actual


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


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("cp.example.com.", "cp.example.com"),
        ("CP.Example", "cp.example"),
        ("kasse_1", "kasse_1"),
        ("10.0.0.1", "10.0.0.1"),
        ("FE80::0:1%Eth0", "fe80::1"),
        ("::1", "::1"),
    ],
)
def test_the_name_in_tls_and_http(host: str, name: str) -> None:
    assert server_name(host) == name
    assert authority(host, 1) == (f"[{name}]:1" if ":" in name else f"{name}:1")


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("kasse_1", True),
        ("_kasse.example", True),
        ("kasse-.example", True),
        ("kasse_", True),
        ("kasse.example.", True),
        ("a" * 63, True),
        ("a" * 64, False),
        (".".join(["a" * 63] * 4), True),
        (".".join(["a" * 63] * 4) + ".bbbb", False),
        ("-kasse", False),
        ("kasse..example", False),
        (".kasse", False),
        ("kasse.example..", False),
        ("käse", False),
        ("ka sse", False),
        ("kasse\n", False),
        ("", False),
    ],
)
def test_host_names_are_those_that_kuma_takes(text: str, there: bool) -> None:
    assert is_host_name(text) is there


def test_a_zone_is_part_of_what_is_bound_and_connected_to() -> None:
    lo = socket.if_nametoindex("lo")
    assert socket_address("fe80::1%lo", 80) == ("fe80::1", 80, 0, lo)
    assert socket_address("fe80::1%7", 80) == ("fe80::1", 80, 0, 7)
    assert socket_address("fe80::1", 80) == ("fe80::1", 80)
    assert socket_address("10.0.0.1", 80) == ("10.0.0.1", 80)
    assert address_text(("fe80::1", 80, 0, lo)) == "fe80::1%lo"
    assert address_text(("fe80::1", 80, 0, 65_000)) == "fe80::1%65000"
    assert address_text(("fe80::1%lo", 80, 0, lo)) == "fe80::1%lo"
    assert address_text(("2001:db8::1", 80, 0, 0)) == "2001:db8::1"
    assert address_text(("10.0.0.1", 80)) == "10.0.0.1"
    assert connect_address("fe80::1%lo", 80) == ("fe80::1%lo", 80)
    for function in (socket_address, connect_address):
        with pytest.raises(OSError, match="no interface 'nowhere'") as error:
            function("fe80::1%nowhere", 80)
        assert error.value.strerror


@pytest.mark.parametrize(("host", "dialled"), [("A_b.", "a_b."), ("::0001", "::1"), ("fe80::1%25x", "fe80::1%x")])
def test_hosts_are_normalised_before_they_are_dialled(host: str, dialled: str) -> None:
    assert dialled_host(host) == dialled
    assert dialled_host(dialled) == dialled
