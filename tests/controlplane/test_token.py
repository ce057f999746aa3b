"""What is read from a token without being able to verify it."""

from __future__ import annotations

import base64
import json

import pytest

from kumadp.controlplane.token import expires_at
from tests.support.controlplane import TOKEN


def token(claims: bytes, padding: str = "") -> str:
    parts = (b'{"alg":"RS256"}', claims, b"\xfb\xff\xfe")
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") + padding for part in parts)


@pytest.mark.parametrize(
    ("claims", "end"),
    [
        (b'{"Name":"web","exp":1767225600,"iat":1}', 1767225600.0),
        (b'{"exp":1767225600.5}', 1767225600.5),
        (b'{"exp":0}', 0.0),
        # 0xff in base64 is where the URL's alphabet differs from the other one.
        (json.dumps({"Name": "\u00ff\u00bf\u00ff?>?>", "exp": 5}, ensure_ascii=False).encode(), 5.0),
    ],
)
def test_the_end_of_a_token(claims: bytes, end: float) -> None:
    assert expires_at(token(claims)) == end


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b",
        "..",
        TOKEN,
        token(b"[]"),
        token(b"null"),
        token(b"{"),
        token(b"\xff\xfe"),
        token(b'{"exp":"1767225600"}'),
        token(b'{"exp":true}'),
        token(b'{"exp":null}'),
        token(b'{"exp":1e999}'),
        token(b'{"exp":NaN}'),
        token(b'{"exp":1' + b"0" * 400 + b"}"),
        token(b"[" * 100_000),
        "a.%%%.c",
        "a.\u00e9\u00e9\u00e9\u00e9.c",
    ],
)
def test_what_says_nothing(text: str) -> None:
    assert expires_at(text) is None
