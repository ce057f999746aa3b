"""Proves, after a start, that Envoy's admin cannot be reached from other hosts."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING, Any

import httpx
import psutil

from kumadp.addresses import WILDCARDS, is_loopback
from kumadp.bootstrap.address import TcpAdmin
from kumadp.errors import AdminExposed
from kumadp.host.ports import local_addresses

if TYPE_CHECKING:
    from kumadp.bootstrap.address import AdminAddress

log = logging.getLogger("kumadp.envoy")

# Read-only paths that only an admin answers; nothing that changes state is ever asked.
ASKED = {"/server_info": b'"hot_restart_version"', "/config_dump": b'"configs"'}
DEADLINE = 2.0
MAX_BODY = 64 * 1024


async def prove_private(pid: int, admin: AdminAddress) -> None:
    """Raise AdminExposed unless the admin of process ``pid`` is on loopback or a Unix socket only.

    Other local addresses that have the admin's port bound, by whatever process, are asked without a certificate for
    ``/server_info`` and ``/config_dump``. The control plane's own listener there answers ``/ready`` and 404 (Kuma 2.13,
    measured), which is as it should be.
    """
    if not isinstance(admin, TcpAdmin):
        return
    suspects = await asyncio.to_thread(_suspects, pid, admin)
    answers = await asyncio.gather(*(_is_admin(host, admin.port) for host in suspects))
    shown = [host for host, is_admin in zip(suspects, answers, strict=True) if is_admin]
    if shown:
        raise AdminExposed(
            f"Envoy's admin answers on {', '.join(f'{host}:{admin.port}' for host in shown)}, which is not loopback",
            "Envoy was killed; look for a listener or policy that leads to the admin",
        )


def _suspects(pid: int, admin: TcpAdmin) -> list[str]:
    local = local_addresses()
    suspects: set[str] = set()
    for host in _listening_hosts(pid, admin.port):
        if host in WILDCARDS:
            # A wildcard of IPv6 takes IPv4 too, unless it was told not to: ask both.
            suspects |= {one for one in local if host == "::" or ":" not in one}
        elif not is_loopback(host):
            suspects.add(host)
    return sorted(host for host in suspects if not is_loopback(host) and not host.startswith("fe80:"))


def _listening_hosts(pid: int, port: int) -> set[str]:
    try:
        bound: Any = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        bound = psutil.Process(pid).net_connections("tcp")
    return {item.laddr.ip for item in bound if item.status == psutil.CONN_LISTEN and item.laddr.port == port}


async def _is_admin(host: str, port: int) -> bool:
    where = f"[{host}]" if ":" in host else host
    # Plain HTTP: without verify=False httpx would read all CAs for nothing.
    async with httpx.AsyncClient(
        base_url=f"http://{where}:{port}",
        verify=False,  # noqa: S501
        trust_env=False,
        timeout=DEADLINE,
        # A connection each: one that a stranger closed after the first answer would lose the second question.
        limits=httpx.Limits(max_keepalive_connections=0),
    ) as client:
        for path, sign in ASKED.items():
            try:
                async with asyncio.timeout(DEADLINE), client.stream("GET", path) as answer:
                    if answer.status_code == 200 and sign in await _beginning(answer):
                        return True
            except (httpx.HTTPError, TimeoutError, socket.gaierror):
                continue
    return False


async def _beginning(answer: httpx.Response) -> bytes:
    """As much of a stranger's body as can matter."""
    data = bytearray()
    async for part in answer.aiter_bytes():
        data += part
        if len(data) >= MAX_BODY:
            break
    return bytes(data)
