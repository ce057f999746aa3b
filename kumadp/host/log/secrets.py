"""Remembers every secret that was read, to mask it in log lines. Thread-safe."""

from __future__ import annotations

import threading

# Immutable, replaced as a whole: other threads iterate over it.
_secrets: tuple[str, ...] = ()
_replacing = threading.Lock()
_SHORTEST = 8
# Tokens may be rotated every few minutes for years: beyond this number, the one registered longest ago is forgotten.
MOST = 1024


def register(secret: str) -> None:
    """Remember a secret; each of its lines of at least 8 characters is masked from now on."""
    global _secrets
    lines = dict.fromkeys(line.strip() for line in secret.splitlines() if len(line.strip()) >= _SHORTEST)
    with _replacing:
        _secrets = (*(secret for secret in _secrets if secret not in lines), *lines)[-MOST:]


def redact(text: str) -> str:
    """Return ``text`` with every registered secret replaced by ``***``."""
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, "***")
    return text


def holds_secret(data: bytes) -> bool:
    """Return whether a registered secret is in ``data``."""
    return any(secret.encode() in data for secret in _secrets)
