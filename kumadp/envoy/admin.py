"""A client of Envoy's admin, over loopback or a Unix socket."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

from kumadp.bootstrap.admin_address import UnixAdmin
from kumadp.decoding import decode_json

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

    from kumadp.bootstrap.admin_address import AdminAddress

DEADLINE = 5.0
# Limit of one answer in bytes: a stranger at the address may answer without end.
LARGEST_BODY = 256 << 20


class AdminUnreachable(Exception):
    """A request to Envoy's admin got no usable answer; ``__cause__`` is the library's error, if there is one."""


class AdminClient:
    """Sends requests to Envoy's admin, each on its own connection.

    Every request has a deadline in seconds; each failure of it is an AdminUnreachable. No proxy of the environment is
    used, no redirect followed, no answer decompressed. ``largest_body`` is in bytes.
    """

    def __init__(self, address: AdminAddress, largest_body: int = LARGEST_BODY) -> None:
        self.address = address
        self._largest_body = largest_body
        self._session: ClientSession | None = None
        self._is_closed = False

    async def move_to(self, address: AdminAddress) -> None:
        """Use another address from now on."""
        if address != self.address:
            self.address = address
            await self._end_session()

    async def get(self, path: str, timeout: float = DEADLINE) -> tuple[int, bytes]:
        """Return status and body of a GET."""
        return await self._request("GET", path, timeout)

    async def post(self, path: str, timeout: float = DEADLINE) -> int:
        """Return the status of a POST with an empty body."""
        return (await self._request("POST", path, timeout))[0]

    async def ready(self) -> tuple[bool, str]:
        """Return whether Envoy is LIVE, and the state that it names (Envoy docs: admin ``/ready``)."""
        status, body = await self.get("/ready", timeout=1.0)
        return status == 200, body.decode("utf-8", "replace").strip()

    async def stats(self, pattern: str, timeout: float = DEADLINE) -> dict[str, int]:
        """Return the counters and gauges whose names match a regular expression; raises ValueError if it is no JSON."""
        return await self._stats(f"filter={quote(pattern)}", timeout)

    async def gauges(self, pattern: str, timeout: float = DEADLINE) -> dict[str, int]:
        """Return the gauges whose names match, as `stats`; Envoy looks at a quarter as many statistics."""
        return await self._stats(f"type=Gauges&filter={quote(pattern)}", timeout)

    async def _stats(self, query: str, timeout: float) -> dict[str, int]:
        _, body = await self.get(f"/stats?format=json&{query}", timeout)
        entries = decode_json(body).get("stats", [])
        return {entry["name"]: entry["value"] for entry in entries if isinstance(entry.get("value"), int)}

    async def close(self) -> None:
        """Close the connections; later requests fail."""
        self._is_closed = True
        await self._end_session()

    async def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _request(self, method: str, path: str, timeout: float) -> tuple[int, bytes]:
        if "aiohttp" not in sys.modules:
            # The daemon's servers import it in a thread too: it takes 130 ms.
            await asyncio.to_thread(importlib.import_module, "aiohttp")
        from aiohttp import ClientError
        from yarl import URL

        if self._is_closed:
            raise AdminUnreachable("Envoy has ended")
        url = URL(f"{_base_url(self.address)}{path}", encoded=True)
        if self._session is None:
            self._session = _open_session(self.address)
        try:
            async with (
                asyncio.timeout(timeout),
                self._session.request(method, url, allow_redirects=False) as answer,
            ):
                return answer.status, await _body(answer, self._largest_body)
        except TimeoutError as error:
            raise AdminUnreachable(f"no answer within {timeout:g} s") from error
        # RuntimeError: the session was closed by `move_to` or `close`.
        except (OSError, ClientError, ValueError, RuntimeError) as error:
            raise AdminUnreachable(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Return the operating system's reason, if there is one, without the library's words."""
    cause = getattr(error, "os_error", None) or error
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__


async def _body(answer: ClientResponse, largest: int) -> bytes:
    body = bytearray()
    async for part in answer.content.iter_any():
        body += part
        if len(body) > largest:
            raise AdminUnreachable(f"its answer is larger than {largest >> 20} MiB")
    return bytes(body)


async def post(admin: AdminClient, path: str) -> None:
    """Send a POST that must be answered with 200; raises OSError."""
    try:
        status = await admin.post(path)
    except AdminUnreachable as error:
        raise OSError(f"POST {path}: {error}") from None
    if status != 200:
        raise OSError(f"POST {path} was answered with {status}")


def _base_url(address: AdminAddress) -> str:
    return "http://localhost" if isinstance(address, UnixAdmin) else f"http://{address}"


def _open_session(address: AdminAddress) -> ClientSession:
    from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, UnixConnector

    return ClientSession(
        connector=UnixConnector(address.path, limit=0, force_close=True)
        if isinstance(address, UnixAdmin)
        else TCPConnector(limit=0, force_close=True, ssl=False),
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
        skip_auto_headers=("User-Agent",),
    )
