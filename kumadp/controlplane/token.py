"""The data plane token."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

from kumadp.decoding import decode_json
from kumadp.errors import ControlPlaneRefused
from kumadp.host.descriptors import is_exhausted

if TYPE_CHECKING:
    from pathlib import Path


def read_token(path: Path) -> str:
    """Read the token in a file, trimmed. May block.

    The rules are Kuma 2.8's for ``--dataplane-token-file``; no message quotes the token. Raises ControlPlaneRefused
    (empty, several lines, unreadable), and OSError if this process has no descriptor or memory left, in which case the
    file may be good.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ControlPlaneRefused(f"the token file {path} is not text", "it must hold the token alone") from None
    except OSError as error:
        if is_exhausted(error):
            raise
        raise ControlPlaneRefused(
            f"the token file {path} cannot be read: {error.strerror}", "check --dataplane-token-file"
        ) from None
    return check_token(text, f"the token file {path}")


def check_token(text: str, where: str) -> str:
    """Return ``text`` if it can be a token: not empty, on one line, a signed JWT (RFC 7519).

    ``where`` names its source in messages. The control plane verifies the signature; it rejects an ``alg`` of none,
    which kuma-dp lets pass. Raises ControlPlaneRefused.
    """
    if not text:
        raise ControlPlaneRefused(f"{where} is empty", "write the token into it")
    if any(letter.isspace() or letter == "\0" for letter in text):
        hint = "it must hold one token on one line, without line breaks"
        raise ControlPlaneRefused(f"{where} has white space inside the token", hint)
    parts = text.split(".")
    header = _decoded(parts[0]) if len(parts) == 3 else None
    if header is None or _decoded(parts[1]) is None:
        raise ControlPlaneRefused(f"{where} does not hold a JWT", "make one with kumactl generate dataplane-token")
    if str(header.get("alg") or "none").lower() == "none":
        raise ControlPlaneRefused(f"{where} is not signed", "make one with kumactl generate dataplane-token")
    return text


def expires_at(token: str) -> float | None:
    """Return when a JWT expires (`exp`, RFC 7519), in seconds since 1970; None without a usable `exp`, or for no JWT.

    The signature is not verified, which only the control plane can: this is for reports and for renewal in time.
    """
    end = claims_of(token).get("exp")
    if isinstance(end, bool) or not isinstance(end, int | float):
        return None
    try:
        return float(end) if math.isfinite(end) else None
    except OverflowError:
        return None


def is_renewed_by_kubelet(token: str) -> bool:
    """Return True for a token of a Kubernetes service account bound to a pod: the kubelet renews its file in time."""
    return "kubernetes.io" in claims_of(token)


def claims_of(token: str) -> dict[str, Any]:
    """Return the claims of a JWT, unverified; empty if it is not one."""
    parts = token.split(".")
    return (_decoded(parts[1]) if len(parts) == 3 else None) or {}


def _decoded(part: str) -> dict[str, Any] | None:
    """Decode the JSON object in one part of a JWT; None if there is none (RFC 7515: base64url without padding)."""
    try:
        decoded = decode_json(base64.b64decode(part + "=" * (-len(part) % 4), altchars="-_", validate=True))
    except ValueError:
        return None
    return decoded if isinstance(decoded, dict) else None
