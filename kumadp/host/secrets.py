"""Secrets that were read are remembered here, so that no log line can show them."""

from __future__ import annotations

_known: set[str] = set()
_SHORTEST = 8


def register(secret: str) -> None:
    """Remember a secret; each of its lines of at least 8 characters is masked from now on."""
    _known.update(line.strip() for line in secret.splitlines() if len(line.strip()) >= _SHORTEST)


def redact(text: str) -> str:
    """``text`` with every known secret replaced by ``***``."""
    for secret in _known:
        if secret in text:
            text = text.replace(secret, "***")
    return text


def holds_secret(data: bytes) -> bool:
    """Whether a known secret is in ``data``."""
    return any(secret.encode() in data for secret in _known)
