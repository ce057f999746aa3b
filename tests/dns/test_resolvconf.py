from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumadp.dns.resolvconf import DEFAULT_SERVERS, ResolvConf, is_own, parse, read

if TYPE_CHECKING:
    from pathlib import Path

FIRST = (("10.0.0.1", 53),)


def test_all_options_that_are_used() -> None:
    text = """
# written by hand
nameserver 10.0.0.1   ; the first
nameserver fe80::1%eth0
nameserver [127.0.0.1]:5353
nameserver 10.0.0.1
search example.com
options ndots:5 timeout:3 attempts:4 rotate
"""
    servers = (("10.0.0.1", 53), ("fe80::1%eth0", 53), ("127.0.0.1", 5353))
    assert parse(text) == ResolvConf(servers, 3.0, 4, rotate=True)
    assert parse(text).notes == ()


def test_bad_lines_are_reported_and_ignored() -> None:
    conf = parse("nameserver dns.example\nnameserver [::1]:x\noptions timeout:x attempts\nnameserver 10.0.0.1\njunk")
    assert conf.servers == (("10.0.0.1", 53),)
    assert [note.split(":", 1)[0] for note in conf.notes] == ["line 1", "line 2", "line 3", "line 3"]


def test_numbers_are_limited() -> None:
    assert parse("options timeout:0 attempts:0") == ResolvConf(DEFAULT_SERVERS, 1.0, 1)
    assert parse("options timeout:99999999999 attempts:77") == ResolvConf(DEFAULT_SERVERS, 30.0, 5)


@pytest.mark.parametrize(
    "text", ["", "search mesh\n", "nameserver", "nameserver dns.example\n", "# nameserver 10.0.0.1"]
)
def test_without_a_server_this_host_is_queried(text: str) -> None:
    conf = parse(text)
    assert conf.servers == (("127.0.0.1", 53), ("::1", 53))
    assert conf.by_default


def test_a_file_that_is_missing_or_unreadable_has_no_server(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        conf = read(path)
        assert conf.servers == DEFAULT_SERVERS
        assert len(conf.notes) == 1
        assert why in conf.notes[0]
        assert "127.0.0.1 and ::1 are queried" in conf.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        b"nameserver 10.0.0.1\r\n",
        b"nameserver\t10.0.0.1\t\n",
        b"nameserver 10.0.0.1",
        b"\xff\xfe\n\0\nnameserver 10.0.0.1\nM\xfcller",
        b"nameserver 10.0.0.1 # a\nnameserver 10.0.0.1;b\n;nameserver 10.0.0.2",
        b"# a\x0cnameserver 10.0.0.2\n# \xe2\x80\xa8nameserver 10.0.0.3\nnameserver 10.0.0.1",
        b"x" * 100_000 + b"\nnameserver 10.0.0.1\n",
        b"search " + b"a.example " * 50_000 + b"\nnameserver 10.0.0.1 " + b"y" * 100_000,
    ],
)
def test_lines_are_those_of_the_c_library(text: bytes, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_bytes(text)
    assert read(file).servers == FIRST


def test_addresses_as_inet_aton_takes_them() -> None:
    text = "nameserver 127.1\nnameserver 0x7f000035\nnameserver 2130706689\nnameserver 256.1.1.1\nnameserver 1.2.3.4.5"
    assert parse(text).servers == (("127.0.0.1", 53), ("127.0.0.53", 53), ("127.0.1.1", 53))


@pytest.mark.parametrize("option", ["use-vc", "usevc", "tcp"])
def test_tcp_from_the_beginning(option: str) -> None:
    conf = parse(f"nameserver 10.0.0.1\noptions {option}")
    assert conf.use_tcp
    assert conf.options == ("use-vc",)
    assert conf.notes == ()


def test_options_that_are_not_applied_are_named() -> None:
    everyday = "ndots:5 edns0 trust-ad inet6 no-aaaa debug no-check-names no-tld-query single-request-reopen"
    assert parse(f"nameserver 10.0.0.1\noptions {everyday}").notes == ()
    assert parse("options single-request\noptions no-reload fastest\x1b").notes == (
        "line 1: option single-request has no effect: A and AAAA are queried as the clients query them",
        "line 2: option no-reload has no effect: changes are always applied",
        "line 2: option 'fastest\\x1b' is not known",
    )
    assert parse("options rotate timeout:2 attempts:3 use-vc").options == (
        "use-vc",
        "rotate",
        "timeout:2",
        "attempts:3",
    )
    assert parse("").options == ()


def test_options_of_the_environment_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RES_OPTIONS", "timeout:7 rotate nothing")
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 10.0.0.1\noptions timeout:3 attempts:1\n")
    conf = read(file)
    assert (conf.timeout, conf.attempts, conf.rotate) == (7.0, 1, True)
    assert conf.notes == ("RES_OPTIONS: option nothing is not known",)
    assert read(tmp_path / "none").rotate


def test_what_is_very_large_is_read_in_part_and_at_once(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    with file.open("wb") as output:
        output.write(b"nameserver 10.0.0.1\n")
        output.truncate(1 << 30)
    conf = read(file)
    assert conf.servers == FIRST
    assert conf.notes[0] == "is larger than 1 MiB"
    many = parse("nameserver x\n" * 50_000 + "options a b c\n" * 50_000)
    assert len(many.notes) == 21
    assert many.notes[-1] == "and 199980 more"


@pytest.mark.parametrize(
    ("server", "on", "ours"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.53", "127.0.0.1", False),
        ("10.0.0.7", "0.0.0.0", True),
        ("10.0.0.8", "0.0.0.0", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "0.0.0.0", True),
        ("::", "::", True),
        ("::1", "0.0.0.0", False),
        ("::1", "::", True),
        ("127.0.0.1", "::", True),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("0:0::1", "::1", True),
        ("fe80::7%eth0", "::", True),
        ("fe80::8%eth0", "::", False),
    ],
)
def test_a_server_that_is_ourselves(server: str, on: str, ours: bool) -> None:
    local = {"127.0.0.1", "::1", "10.0.0.7", "fe80::7"}
    assert is_own((server, 53), [(on, 53)], local) is ours
    assert not is_own((server, 54), [(on, 53)], local)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse(text, text)
