"""Envoy's admin, asked over loopback or a Unix socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx

from kumadp.bootstrap.address import UnixAdmin
from kumadp.decoding import decode_json

if TYPE_CHECKING:
    from kumadp.bootstrap.address import AdminAddress

DEADLINE = 5.0


class AdminClient:
    """ReloadRequests Envoy's admin. Every call has a deadline in seconds; failures are httpx.HTTPError."""

    def __init__(self, address: AdminAddress) -> None:
        self.address = address
        self._client = _client(address)

    async def move_to(self, address: AdminAddress) -> None:
        """Ask at another address from now on."""
        if address != self.address:
            former, self.address, self._client = self._client, address, _client(address)
            await former.aclose()

    async def get(self, path: str, timeout: float = DEADLINE) -> tuple[int, bytes]:
        """Status and body of a GET."""
        answer = await self._ask("GET", path, timeout)
        return answer.status_code, answer.content

    async def post(self, path: str, timeout: float = DEADLINE) -> int:
        """Status of a POST with an empty body."""
        return (await self._ask("POST", path, timeout)).status_code

    async def _ask(self, method: str, path: str, timeout: float) -> httpx.Response:
        if self._client.is_closed:
            raise httpx.ConnectError("Envoy is gone for good")
        try:
            # httpx bounds each read; only this bounds the whole.
            async with asyncio.timeout(timeout):
                return await self._client.request(method, path, timeout=timeout)
        except (TimeoutError, httpx.TimeoutException):
            raise httpx.ReadTimeout(f"no answer within {timeout:g} s") from None
        except (httpx.StreamError, httpx.InvalidURL) as error:
            raise httpx.RequestError(str(error)) from None

    async def ready(self) -> tuple[bool, str]:
        """Whether Envoy is LIVE, and the state it names (Envoy docs: admin ``/ready``)."""
        status, body = await self.get("/ready", timeout=1.0)
        return status == 200, body.decode("utf-8", "replace").strip()

    async def stats(self, pattern: str) -> dict[str, int]:
        """Counters and gauges whose names match a regular expression."""
        _, body = await self.get(f"/stats?format=json&filter={quote(pattern)}")
        found = decode_json(body).get("stats", [])
        return {entry["name"]: entry["value"] for entry in found if isinstance(entry.get("value"), int)}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def post(admin: AdminClient, path: str) -> None:
    """A POST that must be answered with 200; raises OSError."""
    try:
        status = await admin.post(path)
    except httpx.HTTPError as error:
        raise OSError(f"POST {path}: {str(error) or type(error).__name__}") from None
    if status != 200:
        raise OSError(f"POST {path} was answered with {status}")


def _client(address: AdminAddress) -> httpx.AsyncClient:
    path = address.path if isinstance(address, UnixAdmin) else None
    base = "http://localhost" if path else f"http://{address}"
    # verify=False: plain HTTP, and httpx would otherwise read all CAs for nothing.
    transport = httpx.AsyncHTTPTransport(verify=False, uds=path, limits=httpx.Limits(max_keepalive_connections=0))
    return httpx.AsyncClient(base_url=base, transport=transport, trust_env=False, timeout=DEADLINE)
