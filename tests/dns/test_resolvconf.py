from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kumadp.dns.resolvconf import ResolvConf, parse


def test_all_that_is_used() -> None:
    text = """
# made by hand
nameserver 10.0.0.1   ; the first
nameserver fe80::1%eth0
nameserver [127.0.0.1]:5353
nameserver 10.0.0.1
search example.com
options ndots:5 timeout:3 attempts:4 rotate
"""
    servers = (("10.0.0.1", 53), ("fe80::1%eth0", 53), ("127.0.0.1", 5353))
    assert parse(text) == ResolvConf(servers, 3.0, 4, rotate=True)


def test_bad_lines_are_told_and_passed_over() -> None:
    conf = parse("nameserver dns.example\nnameserver [::1]:x\noptions timeout:x attempts\nnameserver 10.0.0.1\njunk")
    assert conf.servers == (("10.0.0.1", 53),)
    assert [note.split(":", 1)[0] for note in conf.notes] == ["line 1", "line 2", "line 3", "line 3"]


def test_numbers_have_bounds() -> None:
    assert parse("options timeout:0 attempts:0") == ResolvConf((), 1.0, 1)
    assert parse("options timeout:99999999999 attempts:77") == ResolvConf((), 30.0, 5)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    parse(text)
