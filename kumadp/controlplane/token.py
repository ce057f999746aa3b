"""The data plane token."""

from __future__ import annotations

import base64
import json
import math
from typing import TYPE_CHECKING

from kumadp.errors import ControlPlaneRefused

if TYPE_CHECKING:
    from pathlib import Path


def read_token(path: Path) -> str:
    """The token in a file, trimmed. May block. Raises ControlPlaneRefused (empty, several lines, unreadable).

    The rules are Kuma 2.8's for ``--dataplane-token-file``; the text never shows in a message.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ControlPlaneRefused(f"the token file {path} is not text", "it must hold the token alone") from None
    except OSError as error:
        raise ControlPlaneRefused(
            f"the token file {path} cannot be read: {error.strerror}", "check --dataplane-token-file"
        ) from None
    return check_token(text, f"the token file {path}")


def check_token(text: str, where: str) -> str:
    """``text`` itself when it can be a token: not empty, one line, the three parts of a JWT (RFC 7519)."""
    if not text:
        raise ControlPlaneRefused(f"{where} is empty", "write the token into it")
    if any(letter.isspace() or letter == "\0" for letter in text):
        raise ControlPlaneRefused(f"{where} has white space inside the token", "it must hold one token on one line")
    if text.count(".") != 2:
        raise ControlPlaneRefused(f"{where} does not hold a JWT", "make one with kumactl generate dataplane-token")
    return text


def expires_at(token: str) -> float | None:
    """When a JWT ends (`exp`, RFC 7519), in seconds since 1970; None where it says nothing, or is none.

    The signature is not looked at: only the control plane can, and this is for telling and for renewing in time.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars="-_", validate=True))
    except (ValueError, RecursionError):
        return None
    end = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(end, bool) or not isinstance(end, int | float):
        return None
    try:
        return float(end) if math.isfinite(end) else None
    except OverflowError:
        return None
