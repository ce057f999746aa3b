"""Which headers of a probe are forwarded to the application."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kumadp.host.net.http1.fields import FieldList

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


def hop_by_hop(fields: FieldList) -> frozenset[str]:
    """Return the hop-by-hop headers, including those that Connection names (RFC 9110, 7.6.1)."""
    return _HOP_BY_HOP | fields.tokens("connection")


def is_text(value: str) -> bool:
    """Return whether a header value is free of the forbidden control characters (RFC 9110, 5.5).

    A response may have them: such a header is removed, and does not fail the probe.
    """
    return not _CONTROL.search(value)


def forwarded(fields: FieldList) -> list[tuple[str, str]]:
    """Return the headers to forward: not the hop-by-hop ones, Content-Length, and those for kumadp (X-Kuma-Probes-).

    Expect is answered by kumadp itself.
    """
    excluded = hop_by_hop(fields) | {"content-length", "expect"}
    return [
        pair
        for name, pair in zip(fields.names, fields.items(), strict=True)
        if name not in excluded and not name.startswith("x-kuma-probes-")
    ]
