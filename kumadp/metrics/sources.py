"""HTTP client for the exposition of one source: an application, Envoy's admin, CoreDNS. Responses have limits."""

from __future__ import annotations

import contextlib
import os
import zlib
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from msgspec import Struct

from kumadp.exposition.reader import SLICE
from kumadp.host.net.application_socket import application_socket
from kumadp.metrics.formats import Format, format_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from aiohttp import BaseConnector, ClientResponse, ClientSession

_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_REQUESTS = 5
_MAX_HEAD = 64 << 10
_MAX_SHOWN = 200


class SourceFailed(Exception):
    """The source has no usable exposition; the text is the reason."""


class ScrapeTarget(Struct, frozen=True):
    """A source with a unique ``name``; ``unix`` is the path of its socket, empty for TCP.

    ``limit``: maximum size of its response, uncompressed, in bytes; 0 for none. ``sourced``: see `application_socket`.
    """

    name: str
    url: str
    unix: str = ""
    limit: int = 0
    sourced: bool = False


class SourceResponse:
    """A response whose head has arrived: its format, and its body in parts of about `SLICE` bytes at most."""

    def __init__(self, response: ClientResponse, form: Format, limit: int) -> None:
        self.format = form
        self._response = response
        self._limit = limit
        encoding = response.headers.get("content-encoding", "").strip().lower()
        self._gunzip = _Gunzip() if encoding in {"gzip", "x-gzip"} else None
        if self._gunzip is None and encoding not in {"", "identity"}:
            raise SourceFailed(f"its response is encoded as {encoding[:40]}, which was not requested")

    async def parts(self) -> AsyncIterator[bytes]:
        """Read the body; raises SourceFailed."""
        import aiohttp

        size = 0
        try:
            async for part in self._response.content.iter_any():
                for piece in self._gunzip.decompress(part) if self._gunzip is not None else (part,):
                    size += len(piece)
                    if self._limit and size > self._limit:
                        raise SourceFailed(
                            f"its response is larger than {self._limit >> 20} MB (--metrics-source-limit)"
                        )
                    yield piece
        except zlib.error:
            raise SourceFailed("its response is not gzip, although its header declares it") from None
        except (OSError, aiohttp.ClientError) as error:
            raise SourceFailed(f"its response broke off: {str(error) or type(error).__name__}") from None
        if self._gunzip is not None and not self._gunzip.complete:
            raise SourceFailed("its response broke off")


class _Gunzip:
    """Decompresses gzip (RFC 1952), one member after another, in slices: a small response may expand to a large one."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)
        self._begun = False

    @property
    def complete(self) -> bool:
        return self._stream.eof or not self._begun

    def decompress(self, data: bytes) -> Iterator[bytes]:
        """Return the decompressed data in slices; raises zlib.error."""
        while data:
            if self._stream.eof:
                self._stream = zlib.decompressobj(wbits=31)
            self._begun = True
            out = self._stream.decompress(data, SLICE)
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            if out:
                yield out


@contextlib.asynccontextmanager
async def open_source(target: ScrapeTarget, headers: Mapping[str, str]) -> AsyncIterator[SourceResponse]:
    """Send a request and wait for the head of the response; the caller sets a deadline. Raises SourceFailed."""
    import aiohttp

    request_headers = dict(headers) if target.unix else {**headers, "Accept-Encoding": "gzip"}
    async with _session(target) as session:
        try:
            response = await _get(session, target.url, request_headers)
        except (OSError, aiohttp.ClientError, ValueError) as error:
            raise SourceFailed(_reason(error)) from None
        try:
            if response.status != 200:
                raise SourceFailed(f"it responded with status {response.status}")
            form = format_of(response.headers.get("content-type", ""))
            if form is None:
                raise SourceFailed("it responded with protobuf, which was not requested")
            yield SourceResponse(response, form, target.limit)
        finally:
            response.close()


async def _get(session: ClientSession, url: str, headers: Mapping[str, str]) -> ClientResponse:
    """Follow redirects on the same host; return the last response."""
    from yarl import URL

    first = urlsplit(url)
    for number in range(_MAX_REQUESTS):
        response = await session.get(URL(url, encoded=True), headers=headers, allow_redirects=False)
        location = response.headers.get("location", "")
        if response.status not in _REDIRECTS or not location:
            if number and response.status != 200:
                response.close()
                at = url.removeprefix(f"{first.scheme}://{first.netloc}")[:_MAX_SHOWN]
                raise SourceFailed(f"it responded with status {response.status} at {at}, to which it redirects")
            return response
        response.close()
        url = urljoin(url, location).partition("#")[0]
        following = urlsplit(url)
        if (following.scheme, following.netloc) != (first.scheme, first.netloc):
            raise SourceFailed("it redirects to another host, which is not followed")
    raise SourceFailed(f"it redirects more than {_MAX_REQUESTS} times")


def _session(target: ScrapeTarget) -> ClientSession:
    from aiohttp import ClientSession, ClientTimeout, DummyCookieJar

    return ClientSession(
        connector=_connector(target),
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        max_line_size=_MAX_HEAD,
        max_field_size=_MAX_HEAD,
    )


def _connector(target: ScrapeTarget) -> BaseConnector:
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
    return f"it is unreachable: {text}"
