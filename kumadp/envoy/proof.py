"""Proves, after a start, that Envoy's admin cannot be reached from other hosts."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from kumadp.addresses import ANY_IPV6, WILDCARDS, is_loopback
from kumadp.bootstrap.address import TcpAdmin
from kumadp.errors import AdminExposed

if TYPE_CHECKING:
    from kumadp.bootstrap.address import AdminAddress

log = logging.getLogger("kumadp.envoy")

# Read-only paths that only an admin answers; nothing that changes state is ever asked.
ASKED = {"/server_info": b'"hot_restart_version"', "/config_dump": b'"configs"'}
DEADLINE = 2.0
MAX_BODY = 64 * 1024


async def prove_private(pid: int, admin: AdminAddress) -> None:
    """Raise AdminExposed unless the admin of process ``pid`` is on loopback or a Unix socket only.

    Other local addresses that have the admin's port bound, by whatever process, are asked without a certificate, in
    plain and over TLS, for ``/server_info`` and ``/config_dump``. The control plane's own listener there answers
    ``/ready`` and 404, and no TLS without its certificate (Kuma 2.13, measured), which is as it should be.
    """
    if not isinstance(admin, TcpAdmin):
        return
    suspects = await asyncio.to_thread(_suspects, pid, admin)
    answers = await asyncio.gather(*(_is_admin(host, admin.port) for host in suspects))
    shown = [host for host, is_admin in zip(suspects, answers, strict=True) if is_admin]
    if shown:
        raise AdminExposed(
            f"Envoy's admin answers on {', '.join(_where(host, admin.port) for host in shown)}, which is not loopback",
            "Envoy was killed; look for a listener or policy that leads to the admin",
        )


def _suspects(pid: int, admin: TcpAdmin) -> list[str]:
    local = _local_addresses()
    suspects: set[str] = set()
    for host in _listening_hosts(pid, admin.port):
        if host in WILDCARDS:
            # A wildcard of IPv6 takes IPv4 too, unless it was told not to: ask both. Every interface has an address
            # with a zone, and behind a wildcard all are one socket: one of them is enough.
            suspects |= {one for one in local if "%" not in one and (host == ANY_IPV6 or ":" not in one)}
            if host == ANY_IPV6:
                suspects |= set(itertools.islice((one for one in local if "%" in one), 1))
        else:
            suspects |= {one for one in local if one.partition("%")[0] == host} or {host}
    return sorted(host for host in suspects if not is_loopback(host))


def _local_addresses() -> list[str]:
    """Addresses of this host, those of one link with their zone (RFC 4007), without which they lead nowhere."""
    found = itertools.chain.from_iterable(psutil.net_if_addrs().values())
    return sorted({entry.address for entry in found if entry.family in {socket.AF_INET, socket.AF_INET6}})


def _listening_hosts(pid: int, port: int) -> set[str]:
    try:
        bound: Any = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        bound = psutil.Process(pid).net_connections("tcp")
    return {item.laddr.ip for item in bound if item.status == psutil.CONN_LISTEN and item.laddr.port == port}


def _where(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _is_admin(host: str, port: int) -> bool:
    # Nobody's certificate matters here, and httpx would read all CAs for nothing.
    async with httpx.AsyncClient(
        verify=False,  # noqa: S501
        trust_env=False,
        timeout=DEADLINE,
        # Compressed, a small answer could become a large one.
        headers={"accept-encoding": "identity"},
        # A connection each: one that a stranger closed after the first answer would lose the second question.
        limits=httpx.Limits(max_keepalive_connections=0),
    ) as client:
        questions = itertools.product(("http", "https"), ASKED)
        urls = ((f"{scheme}://{_where(host, port)}{path}", ASKED[path]) for scheme, path in questions)
        return any(await asyncio.gather(*(_shows(client, url, sign) for url, sign in urls)))


async def _shows(client: httpx.AsyncClient, url: str, sign: bytes) -> bool:
    try:
        async with asyncio.timeout(DEADLINE), client.stream("GET", url) as answer:
            return answer.status_code == 200 and sign in await _beginning(answer)
    except (httpx.HTTPError, OSError):
        return False


async def _beginning(answer: httpx.Response) -> bytes:
    """As much of a stranger's body as can matter."""
    data = bytearray()
    async for part in answer.aiter_raw():
        data += part
        if len(data) >= MAX_BODY:
            break
    return bytes(data)
