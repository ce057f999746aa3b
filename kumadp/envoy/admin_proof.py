"""Proof, after a start and whenever its listeners change, that Envoy's admin cannot be reached from other hosts."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.addresses import ANY_IPV6, WILDCARDS, is_loopback
from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.envoy.admin import AdminUnreachable
from kumadp.envoy.admin_exposure import exposing_listeners
from kumadp.envoy.admin_probe import AdminProber, ProbeAddress
from kumadp.errors import AdminExposed
from kumadp.host.descriptors import is_exhausted
from kumadp.host.net.interfaces import interface_addresses
from kumadp.host.net.listening import descriptors, listening_addresses, listening_sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.envoy.admin import AdminClient

    OnRest = Callable[[asyncio.Future[None]], object]

log = logging.getLogger("kumadp.envoy")

# The deadline of one answer is a multiple (TIMES) of what the admin itself takes, within these bounds (seconds).
SHORTEST, LONGEST, TIMES = 0.25, 2.0, 20
# The part of that deadline for which a start waits for silent addresses: still several times what the admin takes.
_START_PART = 0.25
_REQUESTS = r"^http\.admin\.downstream_rq_total$"
_CONFIRMATIONS = 3
# Pause before a retry if this process has no descriptors left (seconds).
_RETRY_AFTER = 1.0
# proc_net(5), /proc/net/unix: __SO_ACCEPTCON in the flags.
_LISTENS = 0x10000
# A line of that table: address, three numbers (the third: flags), type, state, inode, path.
_UNIX_SOCKET = re.compile(rb"^\S++ ++\S++ ++\S++ ++([0-9A-Fa-f]{1,8}) ++\S++ ++\S++ ++([0-9]++) ([^\n]++)$", re.M)


class PendingProof:
    """The listeners, by name, that must be proved again, or all."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._all = False
        self._any = asyncio.Event()

    def add(self, listeners: Collection[str] | None) -> None:
        """Add these listeners, None: all."""
        self._names |= set(listeners or ())
        self._all = self._all or listeners is None
        self._any.set()

    def take(self) -> set[str] | None:
        """Return the names added so far, None for all listeners, and start over."""
        names, everything, self._names, self._all = self._names, self._all, set(), False
        self._any.clear()
        return None if everything else names

    async def wait(self) -> None:
        """Return once something must be proved."""
        await self._any.wait()


async def prove_private(
    pid: int,
    admin: AdminClient,
    only: Collection[tuple[str, int]] | None = None,
    later: OnRest | None = None,
) -> None:
    """Raise AdminExposed unless the admin of process ``pid`` is on loopback or an owner-only Unix socket alone.

    Every address that is not loopback and on which the process listens, on any port, gets requests in plain and over
    TLS, as a client and as a proxy's client would send them; so does any other process on the admin's own port.
    ``only`` limits this to these hosts and ports, and the admin's. If an admin answers, it counts only if it is ours,
    by its own counter: an application may well be an Envoy. The control plane's own listener answers ``/ready`` and
    404, and no TLS without its certificate (Kuma 2.13, measured), which is intended.

    What requests cannot guess (a path, a host name or a header that a route demands) is looked up in the configuration
    that Envoy runs. Not covered: UDP (HTTP/3).

    ``later`` is for a start, which a silent application must not delay: if the configuration shows no way to the
    admin, it is called with the rest of the proof, for addresses that have not answered soon; that raises the same
    errors.

    If no descriptor or memory is left for a request, it waits until there is: that proves nothing.
    """
    while True:
        try:
            return await _prove(pid, admin, only, later)
        except OSError as error:
            if not is_exhausted(error):
                raise
            log.warning("cannot check now whether Envoy's admin is private: %s; retrying", error)
            await asyncio.sleep(_RETRY_AFTER)


async def _prove(
    pid: int,
    admin: AdminClient,
    only: Collection[tuple[str, int]] | None,
    later: OnRest | None,
) -> None:
    address = admin.address
    bound = await asyncio.to_thread(_listening, pid, address)
    is_read = await _prove_configuration(admin, {address for address in bound if not is_loopback(address[0])})
    probed = await asyncio.to_thread(_probe_addresses, pid, bound, address, only)
    if not probed:
        return
    deadline = await _probe_deadline(admin)
    prober = AdminProber(_authority(address), deadline)
    probes: dict[asyncio.Future[bool], ProbeAddress] = {
        asyncio.ensure_future(prober.is_admin(target)): target for target in probed
    }
    rest: dict[asyncio.Future[bool], ProbeAddress] = {}
    try:
        _, pending = await asyncio.wait(
            probes, timeout=deadline * _START_PART if is_read and later is not None else None
        )
        rest = {probe: probes.pop(probe) for probe in pending}
        if rest and later is not None:
            later(asyncio.ensure_future(_judge(admin, prober, rest)))
        await _judge(admin, prober, probes)
    finally:
        for probe in probes:
            probe.cancel()


async def _judge(admin: AdminClient, prober: AdminProber, probes: Mapping[asyncio.Future[bool], ProbeAddress]) -> None:
    """Raise AdminExposed if one of the probed addresses is an admin, and ours."""
    answers = await asyncio.gather(*probes)
    admins = [target for target, is_admin in zip(probes.values(), answers, strict=True) if is_admin]
    ours = [str(target) for target in admins if await _is_ours(admin, prober, target)]
    if ours:
        raise AdminExposed(
            f"Envoy's admin answers on {', '.join(ours)}, which is not loopback",
            "Envoy was killed; look for a listener or policy that leads to the admin",
        )


async def _prove_configuration(admin: AdminClient, bound: Collection[tuple[str, int]]) -> bool:
    """Check the configuration that Envoy runs; returns whether it could be read.

    Raises AdminExposed if it leads to the admin, whatever a request has to look like.
    """
    if not bound:
        return True
    try:
        exposing = await exposing_listeners(admin, bound, await asyncio.to_thread(_external_addresses))
    except (AdminUnreachable, ValueError) as error:
        reason = str(error) or type(error).__name__
        log.warning("Envoy's configuration could not be checked for ways to its admin: %s", reason)
        return False
    if exposing:
        raise AdminExposed(
            f"Envoy's admin can be reached from other hosts through the listener {', '.join(exposing)}",
            "Envoy was killed; look for a policy that leads to the admin",
        )
    return True


def _authority(address: AdminAddress) -> str:
    return str(address) if isinstance(address, TcpAdmin) else "localhost"


async def _probe_deadline(admin: AdminClient) -> float:
    """Return the seconds to wait for an answer: an Envoy under load takes longer than one at rest."""
    since = time.monotonic()
    try:
        await admin.get("/server_info", timeout=LONGEST)
    except AdminUnreachable:
        return LONGEST
    return min(max(SHORTEST, TIMES * (time.monotonic() - since)), LONGEST)


async def _is_ours(admin: AdminClient, prober: AdminProber, target: ProbeAddress) -> bool:
    """Return whether our own admin counts each further request to ``target``; True also if that cannot be read."""
    try:
        for _ in range(_CONFIRMATIONS):
            first = (await admin.stats(_REQUESTS)).popitem()[1]
            second = (await admin.stats(_REQUESTS)).popitem()[1]
            await prober.is_admin(target)
            third = (await admin.stats(_REQUESTS)).popitem()[1]
            if third - second <= second - first:
                return False
    except (AdminUnreachable, ValueError, KeyError):
        return True
    return True


def _probe_addresses(
    pid: int, bound: Collection[tuple[str, int]], admin: AdminAddress, only: Collection[tuple[str, int]] | None
) -> list[ProbeAddress]:
    local = interface_addresses()
    reached: set[tuple[str, int]] = set()
    for host, port in bound:
        at_admin = isinstance(admin, TcpAdmin) and port == admin.port
        if only is None or at_admin or (host, port) in only:
            reached |= {(address, port) for address in _reached_at(host, local)}
    over_tcp = [ProbeAddress(host, port) for host, port in sorted(reached) if not is_loopback(host)]
    return [*over_tcp, *(ProbeAddress(path=path) for path in _open_sockets(pid, admin))]


def _reached_at(host: str, local: list[str]) -> set[str]:
    """Return the addresses at which a socket that is bound to ``host`` is reached."""
    if host not in WILDCARDS:
        return {address for address in local if address.partition("%")[0] == host} or {host}
    # A wildcard of IPv6 accepts IPv4 too, unless that is switched off: try both. Every interface has an address
    # with a zone, and behind a wildcard all are the same socket: one of them is enough.
    zoned = itertools.islice((address for address in local if "%" in address), 1) if host == ANY_IPV6 else ()
    plain = (address for address in local if "%" not in address and (host == ANY_IPV6 or ":" not in address))
    return {*zoned, *plain}


def _external_addresses() -> set[str]:
    """Return the addresses at which other hosts reach this one, and the wildcards."""
    hosts = {address.partition("%")[0] for address in interface_addresses()}
    return {*WILDCARDS, *(host for host in hosts if not is_loopback(host))}


def _listening(pid: int, admin: AdminAddress) -> set[tuple[str, int]]:
    """Return where the process listens, and where any other process does on the admin's port."""
    others = listening_sockets(admin.port) if isinstance(admin, TcpAdmin) else ()
    return {*listening_addresses(pid), *((row.host, row.port) for row in others)}


def _open_sockets(pid: int, admin: AdminAddress) -> list[str]:
    """Return Unix sockets of the process that other users may connect to, also from another container."""
    try:
        inodes = {link[8:-1] for link in descriptors(pid) if link.startswith("socket:[")}
        own = listening_paths(Path(f"/proc/{pid}/net/unix").read_bytes(), inodes)
    except OSError as error:
        if is_exhausted(error):
            raise
        return []
    # An abstract socket is reached from this host's network only, as an admin on loopback is.
    only_paths = isinstance(admin, TcpAdmin)
    return sorted({path for path in own if _open_to_others(path) and not (only_paths and path[0] == "@")})


def listening_paths(table: bytes, inodes: Collection[str]) -> list[str]:
    """Return the paths of listening Unix sockets with these inodes, by the kernel's table (proc_pid_net(5): unix).

    A path may hold any bytes, line ends too: any process of this network namespace can add lines of any content. They
    add paths at most; each is probed, and only an answer of our own admin counts.
    """
    matches = _UNIX_SOCKET.finditer(table)
    return [os.fsdecode(match[3]) for match in matches if int(match[1], 16) & _LISTENS and match[2].decode() in inodes]


def _open_to_others(path: str) -> bool:
    if path.startswith("@"):
        return True
    try:
        return bool(Path(path).stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    except OSError:
        return False
