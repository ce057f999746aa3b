"""What is read from a token without being able to verify it."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from kumadp.controlplane.token import check_token, expires_at, read_token
from kumadp.errors import ControlPlaneRefused
from tests.support.scripted_control_plane import TOKEN

if TYPE_CHECKING:
    from pathlib import Path


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
def test_what_has_no_claims(text: str) -> None:
    assert expires_at(text) is None


def signed(header: bytes, claims: bytes = b"{}") -> str:
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (header, claims, b"none"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (TOKEN[:20] + "\n" + TOKEN[20:], "white space inside"),
        (TOKEN[:20] + "\r" + TOKEN[20:], "white space inside"),
        (TOKEN[:20] + "\0" + TOKEN[20:], "white space inside"),
        ("a.b.c", "does not hold a JWT"),
        (TOKEN.rpartition(".")[0], "does not hold a JWT"),
        (TOKEN + ".e30", "does not hold a JWT"),
        # As in Kuma's own tests: the first letter is missing.
        (TOKEN[1:], "does not hold a JWT"),
        (signed(b"[]"), "does not hold a JWT"),
        (signed(b'{"alg":"RS256"}', b"[]"), "does not hold a JWT"),
        (signed(b"{}"), "is not signed"),
        (signed(b'{"alg":""}'), "is not signed"),
        (signed(b'{"alg":"none"}'), "is not signed"),
        (signed(b'{"alg":"None"}'), "is not signed"),
    ],
)
def test_an_invalid_token_is_rejected_without_quoting_it(text: str, message: str) -> None:
    with pytest.raises(ControlPlaneRefused, match=message) as refused:
        check_token(text, "the token")
    assert not text or text not in str(refused.value)


def test_a_file_may_have_line_breaks_around_the_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"\n{TOKEN}\r\n")
    assert read_token(file) == TOKEN
    file.write_text("\n")
    with pytest.raises(ControlPlaneRefused, match="is empty"):
        read_token(file)
    with pytest.raises(ControlPlaneRefused, match="cannot be read"):
        read_token(tmp_path / "none")
