"""The application probe proxy (Kuma 2.9 to 2.14): kubelet asks here, this asks the application past the mesh.

Answers, bodies and codes are those of Kuma 2.14. Nothing of what the application says but its code is passed on.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import socket
from typing import TYPE_CHECKING

from kumadp.addresses import address_text, is_ip
from kumadp.host.net.serve import bind_tcp, serve
from kumadp.probes.asked import PREFIX, Redirect, read_request, read_timeout
from kumadp.probes.asking import UNHEALTHY, Asker, authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp import web

    from kumadp.probes.asked import Asked
    from kumadp.probes.asking import Place

log = logging.getLogger("kumadp.probes")

# Probes of one application at a time: one that hangs must not take what the others need.
PER_APPLICATION = 20
HEADERS = {"content-type": "text/plain; charset=utf-8", "x-content-type-options": "nosniff"}


class ProbeProxy:
    """Serves probes. The port is bound when this is made (PortsTaken).

    ``sourced``: applications are asked from the address that transparent proxying passes by.
    """

    name = "application probe proxy"

    def __init__(self, host: str, port: int, place: Place, *, sourced: bool) -> None:
        self._socket = bind_tcp(host, port, "KUMA_APPLICATION_PROBE_PROXY_PORT")
        self._place = place
        self._asker = Asker(sourced=sourced)
        # By port, with how many use or wait for it.
        self._slots: dict[int, tuple[asyncio.Semaphore, list[int]]] = {}
        self.answered = collections.Counter[str]()
        """Answers by the class of their status, ``2xx``."""

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled."""
        try:
            await serve(self._counted, self._socket, up, name=self.name, abandon=True)
        finally:
            await self._asker.close()

    async def _counted(self, request: web.BaseRequest) -> web.Response:
        answer = await self._answer(request)
        self.answered[f"{answer.status // 100}xx"] += 1
        return answer

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        asked = read_request(request.rel_url.raw_path, request.rel_url.raw_query_string)
        if isinstance(asked, Redirect):
            return _redirect(asked.location)
        if asked is None:
            return _say(UNHEALTHY, "UNKNOWN")
        try:
            async with asyncio.timeout(read_timeout(request.headers)):
                status = await self._ask(asked, request)
        except TimeoutError:
            log.debug("port %d: no answer in time", asked.port)
            status = UNHEALTHY
        if status is None:
            return _say(UNHEALTHY, "UNKNOWN")
        return _say(status, "HEALTHY" if status == 200 else "UNHEALTHY")

    async def _ask(self, asked: Asked, request: web.BaseRequest) -> int | None:
        """A code; None where the port is none that may be asked."""
        from aiohttp import ClientError

        place = await self._place(asked.port)
        if not place:
            return None if place is None else UNHEALTHY
        async with self._slot(asked.port):
            try:
                host = await _numeric(place, asked.port)
                if asked.kind == "tcp":
                    return await self._asker.tcp(host, asked.port)
                if asked.kind == "grpc":
                    return await self._asker.grpc(host, asked.port, request.headers.get(PREFIX + "grpc-service", ""))
                return await self._asker.http(host, asked, request.headers, self._place)
            except (OSError, ClientError, ValueError) as error:
                log.debug("%s: %s", authority(place, asked.port), error)
                return UNHEALTHY

    @contextlib.asynccontextmanager
    async def _slot(self, port: int) -> AsyncIterator[None]:
        """In here one of the probes of an application; nothing is stored for ports without requests."""
        slots, users = self._slots.setdefault(port, (asyncio.Semaphore(PER_APPLICATION), [0]))
        users[0] += 1
        try:
            async with slots:
                yield
        finally:
            users[0] -= 1
            if not users[0]:
                self._slots.pop(port, None)


async def _numeric(place: str, port: int) -> str:
    """The address of a name. Raises OSError."""
    if is_ip(place):
        return place
    found = await asyncio.get_running_loop().getaddrinfo(place, port, type=socket.SOCK_STREAM)
    return address_text(found[0][4])


def _say(status: int, result: str) -> web.Response:
    from aiohttp import web

    return web.Response(status=status, body=f"{result}\n".encode(), headers=HEADERS)


def _redirect(location: str) -> web.Response:
    """As Go says it (1.26; 301 in older ones)."""
    from html import escape

    from aiohttp import web

    text = f'<a href="{escape(location)}">Temporary Redirect</a>.\n\n'
    return web.Response(status=307, text=text, content_type="text/html", headers={"location": location})
