"""Lines of access log by the rules of Kuma 2.8 to 2.14, without the extra newline of 2.8."""

from __future__ import annotations

import json

import pytest

from kumadp.accesslog.records import parse, split_address

TO = "127.0.0.1:514"


def wrapped(message: object) -> bytes:
    return json.dumps({"address": TO, "message": message}, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        ("GET / 200\n", b"GET / 200\n"),
        ("as it is", b"as it is"),
        ("two\nlines\n", b"two\nlines\n"),
        ({"b": 1, "a": {"d": None, "c": [True, 2]}}, b'{"a":{"c":[true,2],"d":null},"b":1}\n'),
        ({"x": "<a href='1'>&\u2028é"}, b'{"x":"\\u003ca href=\'1\'\\u003e\\u0026\\u2028\xc3\xa9"}\n'),
        ({"<": 1}, b'{"\\u003c":1}\n'),
        (None, b"null\n"),
        (["a"], b'["a"]\n'),
        (
            {"n": [5.0, 0.00001, 1.5e300, 1e-7, 12345678.25, -0.5]},
            b'{"n":[5,0.00001,1.5e+300,1e-7,12345678.25,-0.5]}\n',
        ),
    ],
)
def test_json(message: object, payload: bytes) -> None:
    assert parse(wrapped(message)) == (TO, payload)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"127.0.0.1:514;[2026] GET /;x", (TO, b"[2026] GET /;x\n")),
        (b";nothing", ("", b"nothing\n")),
        (b'{"address":5;x', ('{"address":5', b"x\n")),
        (b"no separator", None),
        (b'{"address":"a:1","message":"cut', None),
        (b'"a string"', None),
        (b'{"message":"m"}', ("", b"m")),
        (b'{"address":"a:1","message":"\xff"}', ("a:1", "\ufffd".encode())),
        (b'{"address":"a:1","message":"\\ud800\xff"}', ("a:1", "\ufffd\ufffd".encode())),
        (b'{"address":"a:1","message":{"\\udc00":"\\ud83d\\ude00"}}', ("a:1", '{"\ufffd":"\U0001f600"}\n'.encode())),
        (b'{"address":"a:1","message":NaN}', None),
        (b'{"address":"a:1","message":1e999}', None),
        (b'{"address":"a:1","message":' + b"9" * 5000 + b"}", None),
        (b'{"address":"a:1","message":' + b"[" * 200 + b"]" * 200 + b"}", ("a:1", b"[" * 200 + b"]" * 200 + b"\n")),
        (b'{"address":"a:1","message":' + b"[" * 201 + b"]" * 201 + b"}", None),
        (b'{"address":"a:1","message":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    ],
)
def test_other_lines(line: bytes, found: tuple[str, bytes] | None) -> None:
    assert parse(line) == found


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("127.0.0.1:514", ("127.0.0.1", 514)),
        ("[::1]:514", ("::1", 514)),
        ("logs.example:65535", ("logs.example", 65535)),
        (":514", ("localhost", 514)),
        ("", None),
        ("host", None),
        ("host:", None),
        ("host:0", None),
        ("host:65536", None),
        ("host:http", None),
        ("host:²", None),
        ('{"a":1', None),
        ("a b:1", None),
        ("a" * 300 + ":1", None),
    ],
)
def test_addresses(address: str, place: tuple[str, int] | None) -> None:
    assert split_address(address) == place
