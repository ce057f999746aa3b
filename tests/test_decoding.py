"""Whatever is wrong with JSON or MessagePack, there is one exception with one line, in every release of the decoder."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from kumadp.decoding import Undecodable, convert, decode_json, decode_msgpack, repair


class Named(msgspec.Struct):
    name: str = ""
    count: int = 0
    anything: Any = None


DEEP = 100_000
BAD_JSON: dict[str, bytes | str] = {
    "nothing": b"",
    "cut": b'{"name":"a',
    "not UTF-8 in a text": b'{"name":"\xff"}',
    "not UTF-8 in front": b"\xff{}",
    "a surrogate in UTF-8": b'{"name":"\xed\xa0\x80"}',
    "half of a pair": b'{"name":"\\ud800"}',
    "half of a pair as a key": b'{"anything":{"\\udfff":1}}',
    "NaN": b'{"anything":NaN}',
    "Infinity": b'{"anything":-Infinity}',
    "larger than a float": b'{"anything":1e999}',
    "too many digits": b'{"anything":' + b"9" * 5000 + b"}",
    "too deep": b'{"anything":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "too deep where nobody looks": b'{"unknown":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "too deep and cut": b"[" * DEEP,
    "another type": b"[1]",
    "a mark of byte order": b"\xef\xbb\xbf{}",
    "a text that is no UTF-8": '{"name":"\ud800"}',
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json(name: str) -> None:
    with pytest.raises(Undecodable) as bad:
        decode_json(BAD_JSON[name], Named)
    assert len(str(bad.value).splitlines()) == 1


@pytest.mark.parametrize("name", sorted(set(BAD_JSON) - {"another type"}))
def test_bad_json_where_any_type_will_do(name: str) -> None:
    with pytest.raises(Undecodable):
        decode_json(BAD_JSON[name])


BAD_MSGPACK = {
    "nothing": b"",
    "not UTF-8": b"\x81\xa4name\xa1\xff",
    "too deep": b"\x81\xa8anything" + b"\x91" * DEEP + b"\xc0",
    "another type": b"\x91\x01",
    "cut": b"\x81\xa4na",
}


@pytest.mark.parametrize("name", BAD_MSGPACK)
def test_bad_msgpack(name: str) -> None:
    with pytest.raises(Undecodable):
        decode_msgpack(BAD_MSGPACK[name], Named)


@pytest.mark.parametrize("value", [{"count": "x"}, {"count": float("nan")}, {"name": None}, 5, None])
def test_values_that_do_not_fit(value: object) -> None:
    with pytest.raises(Undecodable) as bad:
        convert(value, Named)
    assert len(str(bad.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'"a\xffb"', "a\ufffdb"),
        (b'"\\ud800"', "\ufffd"),
        (b'"\\udc00\\ud800x"', "\ufffd\ufffdx"),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\uD83D\\uDE00\\uDE00"', "\U0001f600\ufffd"),
        (b'"\\\\ud800"', "\\ud800"),
        (b'"\\\\\\ud800"', "\\\ufffd"),
    ],
)
def test_repair_replaces_only_what_is_not_text(data: bytes, text: str) -> None:
    assert json.loads(repair(data)) == text
