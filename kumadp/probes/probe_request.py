"""Parser of requests to the application probe proxy (Kuma 2.9 to 2.14): pure."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from msgspec import Struct

if TYPE_CHECKING:
    from kumadp.host.net.http1.fields import FieldList

# kubelet sends the same probes again and again; those up to this length are remembered.
_REPEATED = 512
PREFIX = "x-kuma-probes-"
# kubelet's own default; the control plane writes the header for longer ones only.
DEFAULT_TIMEOUT = 1.0
# A day: no sensible probe takes longer.
LONGEST_TIMEOUT = 86400.0
_SOCKET = re.compile(rb"/(tcp|grpc)/([0-9]+)(/.*)?", re.DOTALL)
_HTTP = re.compile(rb"/([0-9]+)(/[^\n]*)?")
# Characters that Go (net/url) does not escape in a path, besides letters, digits and -._~.
_PLAIN = "$&+,/:;=@"


class ProbeRequest(Struct, frozen=True):
    """One probe; ``path`` and ``query`` as they are sent to the application, for HTTP only."""

    kind: Literal["http", "tcp", "grpc"]
    port: int
    path: str = "/"
    query: str = ""


class CleanPathRedirect(Struct, frozen=True):
    """The path is not clean; the client is redirected to ``location`` (Go's net/http: ServeMux)."""

    location: str


def parse_request(path: str, query: str) -> ProbeRequest | CleanPathRedirect | None:
    """Parse a request's raw path and query; None if it is not a probe or its port is not valid."""
    return _parse_repeated(path, query) if len(path) + len(query) <= _REPEATED else _parse_request(path, query)


def _parse_request(path: str, query: str) -> ProbeRequest | CleanPathRedirect | None:
    clean = clean_path(path)
    if clean in {"/tcp", "/grpc"}:
        clean += "/"
    if clean != path:
        return CleanPathRedirect(clean + (f"?{query}" if query else ""))
    decoded = unquote_to_bytes(path)
    if match := _SOCKET.fullmatch(decoded):
        kind: Literal["tcp", "grpc"] = "tcp" if match[1] == b"tcp" else "grpc"
        return ProbeRequest(kind, port) if (port := _port(match[2])) is not None else None
    if decoded.startswith((b"/tcp/", b"/grpc/")):
        return None
    if (match := _HTTP.fullmatch(decoded)) and (port := _port(match[1])) is not None:
        return ProbeRequest("http", port, quote_from_bytes(match[2] or b"/", safe=_PLAIN), query)
    return None


_parse_repeated = functools.lru_cache(64)(_parse_request)


def clean_path(path: str) -> str:
    """Return the path without empty parts, ``.`` and ``..``; a slash at its end stays."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    clean = "/" + "/".join(parts)
    return clean + "/" if parts and path.endswith("/") else clean


def parse_timeout(headers: FieldList) -> float:
    """Return the timeout in seconds; the default if the header is missing or not a positive whole number.

    kuma-dp takes 0 and less as no limit for HTTP and TCP, and lets gRPC fail at once (2.9 to 2.14).
    """
    text = headers.get(PREFIX + "timeout", "")
    if not re.fullmatch(r"\+?[0-9]{1,18}", text) or not int(text):
        return DEFAULT_TIMEOUT
    return min(float(text), LONGEST_TIMEOUT)


def parse_scheme(headers: FieldList) -> Literal["http", "https"] | None:
    """Return the scheme, HTTP by default; None for any other, which kuma-dp cannot probe either."""
    scheme = headers.get(PREFIX + "scheme", "") or "HTTP"
    return {"HTTP": "http", "HTTPS": "https"}.get(scheme.upper())  # type: ignore[return-value]


def _port(digits: bytes) -> int | None:
    return int(digits) if len(digits) <= 18 and int(digits) <= 65535 else None
