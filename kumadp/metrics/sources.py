"""Asks one source for its exposition: an application, Envoy's admin, CoreDNS. What comes is bounded."""

from __future__ import annotations

import contextlib
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from kumadp.exposition.reader import SLICE
from kumadp.host.net.application_socket import application_socket
from kumadp.metrics.formats import Format, format_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from aiohttp import BaseConnector, ClientResponse, ClientSession

_REDIRECTS = {301, 302, 303, 307, 308}
_MOST_REQUESTS = 5
_LONGEST_HEAD = 64 << 10
_LONGEST_SHOWN = 200


class SourceFailed(Exception):
    """There is nothing from this source; the text says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked. ``name`` tells it apart; ``unix`` is the path of a socket, where it is not asked over TCP.

    ``limit``: the size of its answer, unpacked, in bytes; 0 for none. ``sourced``: see `application_socket`.
    """

    name: str
    url: str
    unix: str = ""
    limit: int = 0
    sourced: bool = False


class Opened:
    """An answer that has begun: the format it names, and its body in parts of at most `SLICE` bytes or so."""

    def __init__(self, answer: ClientResponse, form: Format, limit: int) -> None:
        self.format = form
        self._answer = answer
        self._limit = limit
        packed = answer.headers.get("content-encoding", "").strip().lower()
        self._unpacker = _Unpacker() if packed in {"gzip", "x-gzip"} else None
        if self._unpacker is None and packed not in {"", "identity"}:
            raise SourceFailed(f"its answer is encoded as {packed[:40]}, which was not asked for")

    async def parts(self) -> AsyncIterator[bytes]:
        """The body; raises SourceFailed."""
        import aiohttp

        size = 0
        try:
            async for part in self._answer.content.iter_any():
                for piece in self._unpacker.unpack(part) if self._unpacker is not None else (part,):
                    size += len(piece)
                    if self._limit and size > self._limit:
                        raise SourceFailed(f"its answer is larger than {self._limit >> 20} MB (--metrics-source-limit)")
                    yield piece
        except zlib.error:
            raise SourceFailed("its answer is no gzip, although it says so") from None
        except (OSError, aiohttp.ClientError) as error:
            raise SourceFailed(f"its answer broke off: {str(error) or type(error).__name__}") from None
        if self._unpacker is not None and not self._unpacker.whole:
            raise SourceFailed("its answer broke off")


class _Unpacker:
    """gzip (RFC 1952), one member after another, unpacked in slices: a small answer may be a large one."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)
        self._begun = False

    @property
    def whole(self) -> bool:
        return self._stream.eof or not self._begun

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """What is in it, in slices; raises zlib.error."""
        while data:
            if self._stream.eof:
                self._stream = zlib.decompressobj(wbits=31)
            self._begun = True
            out = self._stream.decompress(data, SLICE)
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            if out:
                yield out


@contextlib.asynccontextmanager
async def opened(target: Target, headers: Mapping[str, str]) -> AsyncIterator[Opened]:
    """Ask with these headers and wait for the head of the answer. No deadline of its own. Raises SourceFailed."""
    import aiohttp

    sent = dict(headers) if target.unix else {**headers, "Accept-Encoding": "gzip"}
    async with _session(target) as session:
        try:
            answer = await _get(session, target.url, sent)
        except (OSError, aiohttp.ClientError, ValueError) as error:
            raise SourceFailed(_reason(error)) from None
        try:
            if answer.status != 200:
                raise SourceFailed(f"it answers with {answer.status}")
            form = format_of(answer.headers.get("content-type", ""))
            if form is None:
                raise SourceFailed("it answers with protobuf, which was not asked for")
            yield Opened(answer, form, target.limit)
        finally:
            answer.close()


async def _get(session: ClientSession, url: str, headers: Mapping[str, str]) -> ClientResponse:
    """The answer at the end of redirects, which stay where they began."""
    from yarl import URL

    first = urlsplit(url)
    for number in range(_MOST_REQUESTS):
        answer = await session.get(URL(url, encoded=True), headers=headers, allow_redirects=False)
        location = answer.headers.get("location", "")
        if answer.status not in _REDIRECTS or not location:
            if number and answer.status != 200:
                answer.close()
                at = url.removeprefix(f"{first.scheme}://{first.netloc}")[:_LONGEST_SHOWN]
                raise SourceFailed(f"it answers with {answer.status} at {at}, where it redirects to")
            return answer
        answer.close()
        url = urljoin(url, location).partition("#")[0]
        following = urlsplit(url)
        if (following.scheme, following.netloc) != (first.scheme, first.netloc):
            raise SourceFailed("it redirects to another place, which is not asked")
    raise SourceFailed(f"it redirects more than {_MOST_REQUESTS} times")


def _session(target: Target) -> ClientSession:
    from aiohttp import ClientSession, ClientTimeout, DummyCookieJar

    return ClientSession(
        connector=_connector(target),
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        max_line_size=_LONGEST_HEAD,
        max_field_size=_LONGEST_HEAD,
    )


def _connector(target: Target) -> BaseConnector:
    from aiohttp import TCPConnector, UnixConnector

    if target.unix:
        return UnixConnector(target.unix, force_close=True)
    sourced = target.sourced
    return TCPConnector(
        force_close=True, ssl=False, socket_factory=lambda info: application_socket(info[0], sourced=sourced)
    )


def _reason(error: Exception) -> str:
    cause = getattr(error, "os_error", None) or error
    code = getattr(cause, "errno", None)
    text = os.strerror(code) if isinstance(code, int) and code > 0 else str(cause) or type(cause).__name__
    return f"it cannot be asked: {text}"
