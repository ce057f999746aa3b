"""Which headers of a probe are forwarded to the application."""

from __future__ import annotations

import re
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


_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def hop_by_hop(headers: Mapping[str, str]) -> frozenset[str]:
    """Return the hop-by-hop headers, including those that Connection names (RFC 9110, 7.6.1)."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return _HOP_BY_HOP | named


def is_text(value: str) -> bool:
    """Return whether a header value is free of the forbidden control characters (RFC 9110, 5.5).

    aiohttp accepts such characters when it parses headers, and raises ValueError when it sends them.
    """
    return not _CONTROL.search(value)


def forwarded(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the headers to forward: not the hop-by-hop ones, Content-Length, and those for kumadp (X-Kuma-Probes-)."""
    excluded = hop_by_hop(headers) | {"content-length"}
    return [
        (name, value)
        for name, value in headers.items()
        if name.lower() not in excluded and not name.lower().startswith("x-kuma-probes-")
    ]
