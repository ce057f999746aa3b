"""Headers that pass from a probe to the application, and those that do not."""

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


def dropped(headers: Mapping[str, str]) -> frozenset[str]:
    """Hop-by-hop headers, those that Connection names among them (RFC 9110, 7.6.1)."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return _HOP_BY_HOP | named


def is_text(value: str) -> bool:
    """Whether it has none of the control characters that no header may have (RFC 9110, 5.5).

    aiohttp reads them from some peers and raises ValueError where they are to be sent.
    """
    return not _CONTROL.search(value)


def forwarded(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """The others, without the length of a body, and without what is meant for us (X-Kuma-Probes-...)."""
    left_out = dropped(headers) | {"content-length"}
    return [
        (name, value)
        for name, value in headers.items()
        if name.lower() not in left_out and not name.lower().startswith("x-kuma-probes-")
    ]
