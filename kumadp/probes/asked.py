"""What a request to the application probe proxy asks for (Kuma 2.9 to 2.14): pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "x-kuma-probes-"
# kubelet's own default; the control plane writes the header for longer ones only.
DEFAULT_TIMEOUT = 1.0
# A day: a probe that may take longer is none.
LONGEST_TIMEOUT = 86400.0
_SOCKET = re.compile(rb"/(tcp|grpc)/([0-9]+)(/.*)?", re.DOTALL)
_HTTP = re.compile(rb"/([0-9]+)(/[^\n]*)?")
# What Go (net/url) leaves as it is in a path, beside letters, digits and -._~.
_PLAIN = "$&+,/:;=@"


@dataclass(frozen=True, slots=True)
class Asked:
    """One probe; ``path`` and ``query`` as they are sent to the application, for HTTP alone."""

    kind: Literal["http", "tcp", "grpc"]
    port: int
    path: str = "/"
    query: str = ""


@dataclass(frozen=True, slots=True)
class Redirect:
    """The path is not clean; it is to be asked for at ``location`` (Go's net/http: ServeMux)."""

    location: str


def read_request(path: str, query: str) -> Asked | Redirect | None:
    """What a request's raw path and query ask for; None where that is no probe, or not of a port."""
    clean = clean_path(path)
    if clean in {"/tcp", "/grpc"}:
        clean += "/"
    if clean != path:
        return Redirect(clean + (f"?{query}" if query else ""))
    decoded = unquote_to_bytes(path)
    if found := _SOCKET.fullmatch(decoded):
        kind: Literal["tcp", "grpc"] = "tcp" if found[1] == b"tcp" else "grpc"
        return Asked(kind, port) if (port := _port(found[2])) is not None else None
    if decoded.startswith((b"/tcp/", b"/grpc/")):
        return None
    if (found := _HTTP.fullmatch(decoded)) and (port := _port(found[1])) is not None:
        return Asked("http", port, quote_from_bytes(found[2] or b"/", safe=_PLAIN), query)
    return None


def clean_path(path: str) -> str:
    """The path without empty parts, ``.`` and ``..``; a slash at its end stays."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    clean = "/" + "/".join(parts)
    return clean + "/" if parts and path.endswith("/") else clean


def read_timeout(headers: Mapping[str, str]) -> float:
    """Seconds; the default where none are named, or none that make sense.

    kuma-dp takes 0 and less as no limit for HTTP and TCP, and lets gRPC fail at once (2.9 to 2.14).
    """
    text = headers.get(PREFIX + "timeout", "")
    if not re.fullmatch(r"\+?[0-9]{1,18}", text) or not int(text):
        return DEFAULT_TIMEOUT
    return min(float(text), LONGEST_TIMEOUT)


def read_scheme(headers: Mapping[str, str]) -> Literal["http", "https"] | None:
    """HTTP unless the header says HTTPS; None for anything else, which kuma-dp cannot ask either."""
    scheme = headers.get(PREFIX + "scheme", "") or "HTTP"
    return {"HTTP": "http", "HTTPS": "https"}.get(scheme.upper())  # type: ignore[return-value]


def _port(digits: bytes) -> int | None:
    return int(digits) if len(digits) <= 18 and int(digits) <= 65535 else None
