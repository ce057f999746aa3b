"""Headers that pass from a probe to the application, and those that do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-connection",
    }
)


def dropped(headers: Mapping[str, str]) -> frozenset[str]:
    """Hop-by-hop headers, those that Connection names among them (RFC 9110, 7.6.1)."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return _HOP_BY_HOP | named


def forwarded(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """The others, without the length of a body, and without what is meant for us (X-Kuma-Probes-...)."""
    left_out = dropped(headers) | {"content-length"}
    return [
        (name, value)
        for name, value in headers.items()
        if name.lower() not in left_out and not name.lower().startswith("x-kuma-probes-")
    ]
