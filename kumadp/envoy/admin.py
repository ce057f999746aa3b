"""A client of Envoy's admin, over loopback or a Unix socket."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING
from urllib.parse import quote

from kumadp.bootstrap.admin_address import UnixAdmin
from kumadp.decoding import decode_json
from kumadp.host.net.host_lookup import connect_new
from kumadp.host.net.http1.client import encode_request, exchange

if TYPE_CHECKING:
    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.host.net.http1.client import UpstreamResponse

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
        self._requests: set[asyncio.Future[UpstreamResponse]] = set()
        self._is_closed = False

    async def move_to(self, address: AdminAddress) -> None:
        """Use another address from now on."""
        if address != self.address:
            self.address = address
            self._abort()

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
        self._abort()

    def _abort(self) -> None:
        """Abort the requests under way."""
        for request in self._requests:
            request.cancel()

    async def _request(self, method: str, path: str, timeout: float) -> tuple[int, bytes]:
        if self._is_closed:
            raise AdminUnreachable("Envoy has ended")
        request = asyncio.ensure_future(_exchange(self.address, method, path, self._largest_body))
        self._requests.add(request)
        try:
            async with asyncio.timeout(timeout):
                answer = await request
        except asyncio.CancelledError:
            if request.cancelled() and not _is_cancelled():
                raise AdminUnreachable("the connection was closed") from None
            raise
        except TimeoutError as error:
            raise AdminUnreachable(f"no answer within {timeout:g} s") from error
        except (OSError, ValueError) as error:
            raise AdminUnreachable(_reason(error)) from error
        finally:
            self._requests.discard(request)
        if len(answer.body) > self._largest_body:
            raise AdminUnreachable(f"its answer is larger than {self._largest_body >> 20} MiB")
        return answer.head.status, answer.body


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _reason(error: Exception) -> str:
    """Return the operating system's reason, if there is one, without the library's words."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


async def post(admin: AdminClient, path: str) -> None:
    """Send a POST that must be answered with 200; raises OSError."""
    try:
        status = await admin.post(path)
    except AdminUnreachable as error:
        raise OSError(f"POST {path}: {error}") from None
    if status != 200:
        raise OSError(f"POST {path} was answered with {status}")


async def _exchange(address: AdminAddress, method: str, path: str, largest: int) -> UpstreamResponse:
    fields = [("Accept", "*/*"), ("Accept-Encoding", "identity")]
    if isinstance(address, UnixAdmin):
        host, sock = "localhost", await _connect_unix(address.path)
    else:
        host, sock = str(address), await connect_new(address.host, address.port)
    request = encode_request(method, path, [("Host", host), *fields], b"" if method == "POST" else None)
    return await exchange(sock, request, max_body=largest + 1)


async def _connect_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock
