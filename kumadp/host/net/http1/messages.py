"""A request that a server has received, and what it answers: in one piece."""

from __future__ import annotations

import functools
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from kumadp.host.net.http1.bodies import BodyDecoder
    from kumadp.host.net.http1.heads import RequestHead

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
PLAIN_TEXT = (("Content-Type", "text/plain; charset=utf-8"),)
# Responses without a body (RFC 9110, 6.4.1).
_BODILESS = frozenset({204, 304, *range(100, 200)})


class ServedRequest:
    """A request; ``path`` and ``query`` as they were sent, ``body`` None if it has none."""

    __slots__ = ("_read_body", "body", "head", "path", "query")

    def __init__(
        self, head: RequestHead, body: BodyDecoder | None, read_body: Callable[[int], Awaitable[None]]
    ) -> None:
        self.head = head
        self.body = body
        self._read_body = read_body
        self.path, self.query = split_target(head.target)

    async def read(self, limit: int) -> bytes:
        """Return the body, at most ``limit`` bytes of it. Raises MalformedMessage, and OSError if the client left."""
        if self.body is None:
            return b""
        await self._read_body(limit)
        return bytes(self.body.content[:limit])


class WholeResponse(Struct, frozen=True):
    """A response. Its length, the date and Connection are added; ``close``: the connection is closed after it.

    The length of one to HEAD is added if there is a body, which is then not sent.
    """

    status: int
    body: bytes = b""
    fields: Sequence[tuple[str, str]] = ()
    reason: str | None = None
    close: bool = False

    def encode(self, minor: int, *, keep_alive: bool, to_head: bool) -> bytes:
        """Return its bytes, for a request of HTTP/1.``minor``; ``to_head``: the method was HEAD."""
        lines = [f"HTTP/1.{minor} {self.status} {_reason(self.status) if self.reason is None else self.reason}"]
        lines += [f"{name}: {value}" for name, value in self.fields]
        bodiless = self.status in _BODILESS
        if not bodiless and (self.body or not to_head):
            lines.append(f"Content-Length: {len(self.body)}")
        if not any(name.lower() == "date" for name, _ in self.fields):
            lines.append(f"Date: {_date(int(time.time()))}")
        if not keep_alive and minor:
            lines.append("Connection: close")
        elif keep_alive and not minor:
            lines.append("Connection: keep-alive")
        head = "\r\n".join((*lines, "", "")).encode("latin-1")
        return head if to_head or bodiless else head + self.body


def split_target(target: str) -> tuple[str, str]:
    """Return path and query of a request's target in origin or absolute form (RFC 9112, 3.2)."""
    target = target.partition("#")[0]
    if not target.startswith("/") and "://" in target:
        target = "/" + target.partition("://")[2].partition("/")[2] if "/" in target.partition("://")[2] else "/"
    path, _, query = target.partition("?")
    return path, query


@functools.lru_cache(64)
def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


@functools.lru_cache(1)
def _date(seconds: int) -> str:
    at = time.gmtime(seconds)
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]
    return f"{day}, {at.tm_mday:02} {month} {at.tm_year} {at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
