"""Secrets that were read are remembered here, so that no log line can show them. For any thread."""

from __future__ import annotations

import threading

# Never changed, only replaced: other threads go through it.
_known: tuple[str, ...] = ()
_replacing = threading.Lock()
_SHORTEST = 8
# Tokens may be rotated every few minutes for years: past this many, the oldest that is not in use is forgotten.
MOST = 1024


def register(secret: str) -> None:
    """Remember a secret; each of its lines of at least 8 characters is masked from now on."""
    global _known
    lines = dict.fromkeys(line.strip() for line in secret.splitlines() if len(line.strip()) >= _SHORTEST)
    with _replacing:
        _known = (*(known for known in _known if known not in lines), *lines)[-MOST:]


def redact(text: str) -> str:
    """``text`` with every known secret replaced by ``***``."""
    for secret in _known:
        if secret in text:
            text = text.replace(secret, "***")
    return text


def holds_secret(data: bytes) -> bool:
    """Whether a known secret is in ``data``."""
    return any(secret.encode() in data for secret in _known)
