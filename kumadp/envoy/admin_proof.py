"""Proves, after a start and whenever its listeners change, that Envoy's admin cannot be reached from other hosts."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from kumadp.addresses import ANY_IPV6, WILDCARDS, is_loopback
from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.envoy.admin import AdminUnreachable
from kumadp.envoy.admin_exposure import ways
from kumadp.envoy.admin_probe import AdminProber, ProbeAddress
from kumadp.errors import AdminExposed
from kumadp.host.descriptors import is_exhausted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.envoy.admin import AdminClient

    Later = Callable[[asyncio.Future[None]], object]

log = logging.getLogger("kumadp.envoy")

# Seconds that one answer may take: many times what the admin itself takes, within these bounds.
SHORTEST, LONGEST, TIMES = 0.25, 2.0, 20
# Of that time, what a start waits for whoever is silent: still several times what the admin takes.
_SOON = 0.25
_REQUESTS = r"^http\.admin\.downstream_rq_total$"
_CONFIRMATIONS = 3
# Before it is tried again where this process has no descriptors left (seconds).
_AGAIN = 1.0
# proc_net(5), /proc/net/unix: __SO_ACCEPTCON in the flags.
_LISTENS = 0x10000


class PendingProof:
    """What is to be proved again: the names of listeners, or all."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._all = False
        self._any = asyncio.Event()

    def add(self, listeners: Collection[str] | None) -> None:
        """Doubt these listeners, None: all."""
        self._names |= set(listeners or ())
        self._all = self._all or listeners is None
        self._any.set()

    def take(self) -> set[str] | None:
        """All that was doubted until now, None for everything."""
        names, everything, self._names, self._all = self._names, self._all, set(), False
        self._any.clear()
        return None if everything else names

    async def wait(self) -> None:
        """Return once there is a doubt."""
        await self._any.wait()


async def prove_private(
    pid: int,
    admin: AdminClient,
    only: Collection[tuple[str, int]] | None = None,
    later: Later | None = None,
) -> None:
    """Raise AdminExposed unless the admin of process ``pid`` is on loopback or an owner-only Unix socket alone.

    Every address that is not loopback and on which the process listens, on any port, gets requests in plain and over
    TLS, as a client and as a proxy's client would; so does, on the admin's own port, any other process. ``only``:
    these hosts and ports of all, and the admin's. Where an admin answers, what counts is whether it is ours, by its
    own counter: an application may well be an Envoy. The control plane's own listener answers ``/ready`` and 404,
    and no TLS without its certificate (Kuma 2.13, measured), which is as it should be.

    What requests cannot guess, a path, a host name or a header that a route demands, is looked for in the configuration
    that Envoy runs. Not covered: UDP (HTTP/3).

    ``later`` is for a start, which a silent application must not hold up: where the configuration shows no way to the
    admin, it gets the rest of the proof, for places that have not answered soon, which goes on with the same errors.

    Where no descriptor or memory is left to ask with, it waits until there is: that proves nothing.
    """
    while True:
        try:
            return await _prove(pid, admin, only, later)
        except OSError as error:
            if not is_exhausted(error):
                raise
            log.warning("whether Envoy's admin is private cannot be checked now: %s; it is tried again", error)
            await asyncio.sleep(_AGAIN)


async def _prove(
    pid: int,
    admin: AdminClient,
    only: Collection[tuple[str, int]] | None,
    later: Later | None,
) -> None:
    address = admin.address
    bound = await asyncio.to_thread(_listening, pid, address)
    is_read = await _prove_configuration(admin, {place for place in bound if not is_loopback(place[0])})
    places = await asyncio.to_thread(_places, pid, bound, address, only)
    if not places:
        return
    patience = await _patience(admin)
    prober = AdminProber(_authority(address), patience)
    asked: dict[asyncio.Future[bool], ProbeAddress] = {
        asyncio.ensure_future(prober.is_admin(place)): place for place in places
    }
    rest: dict[asyncio.Future[bool], ProbeAddress] = {}
    try:
        _, pending = await asyncio.wait(asked, timeout=patience * _SOON if is_read and later is not None else None)
        rest = {one: asked.pop(one) for one in pending}
        if rest and later is not None:
            later(asyncio.ensure_future(_judge(admin, prober, rest)))
        await _judge(admin, prober, asked)
    finally:
        for one in asked:
            one.cancel()


async def _judge(admin: AdminClient, prober: AdminProber, asked: Mapping[asyncio.Future[bool], ProbeAddress]) -> None:
    """Raise AdminExposed where one of these answers that it is an admin, and it is ours."""
    answers = await asyncio.gather(*asked)
    shown = [place for place, is_admin in zip(asked.values(), answers, strict=True) if is_admin]
    ours = [str(place) for place in shown if await _is_ours(admin, prober, place)]
    if ours:
        raise AdminExposed(
            f"Envoy's admin answers on {', '.join(ours)}, which is not loopback",
            "Envoy was killed; look for a listener or policy that leads to the admin",
        )


async def _prove_configuration(admin: AdminClient, bound: Collection[tuple[str, int]]) -> bool:
    """Whether Envoy's own configuration could be read.

    Raises AdminExposed where it leads to the admin, whatever a request has to look like.
    """
    if not bound:
        return True
    try:
        found = await ways(admin, bound, await asyncio.to_thread(_outside))
    except (AdminUnreachable, ValueError) as error:
        reason = str(error) or type(error).__name__
        log.warning("Envoy's configuration could not be checked for ways to its admin: %s", reason)
        return False
    if found:
        raise AdminExposed(
            f"Envoy's admin can be reached from other hosts through the listener {', '.join(found)}",
            "Envoy was killed; look for a policy that leads to the admin",
        )
    return True


def _authority(address: AdminAddress) -> str:
    return str(address) if isinstance(address, TcpAdmin) else "localhost"


async def _patience(admin: AdminClient) -> float:
    """How long to wait for an answer: an Envoy under load takes longer than one at rest."""
    since = time.monotonic()
    try:
        await admin.get("/server_info", timeout=LONGEST)
    except AdminUnreachable:
        return LONGEST
    return min(max(SHORTEST, TIMES * (time.monotonic() - since)), LONGEST)


async def _is_ours(admin: AdminClient, prober: AdminProber, place: ProbeAddress) -> bool:
    """Whether each further request there is one more for our own admin; True also where it cannot be told."""
    try:
        for _ in range(_CONFIRMATIONS):
            before = (await admin.stats(_REQUESTS)).popitem()[1]
            between = (await admin.stats(_REQUESTS)).popitem()[1]
            await prober.is_admin(place)
            after = (await admin.stats(_REQUESTS)).popitem()[1]
            if after - between <= between - before:
                return False
    except (AdminUnreachable, ValueError, KeyError):
        return True
    return True


def _places(
    pid: int, bound: Collection[tuple[str, int]], admin: AdminAddress, only: Collection[tuple[str, int]] | None
) -> list[ProbeAddress]:
    local = _local_addresses()
    found: set[tuple[str, int]] = set()
    for host, port in bound:
        at_admin = isinstance(admin, TcpAdmin) and port == admin.port
        if only is None or at_admin or (host, port) in only:
            found |= {(one, port) for one in _reached_at(host, local)}
    places = [ProbeAddress(host, port) for host, port in sorted(found) if not is_loopback(host)]
    return [*places, *(ProbeAddress(path=path) for path in _open_sockets(pid, admin))]


def _reached_at(host: str, local: list[str]) -> set[str]:
    """The addresses at which a socket that is bound to ``host`` is reached."""
    if host not in WILDCARDS:
        return {one for one in local if one.partition("%")[0] == host} or {host}
    # A wildcard of IPv6 takes IPv4 too, unless that is switched off: try both. Every interface has an address
    # with a zone, and behind a wildcard all are one socket: one of them is enough.
    zoned = itertools.islice((one for one in local if "%" in one), 1) if host == ANY_IPV6 else ()
    return {*zoned, *(one for one in local if "%" not in one and (host == ANY_IPV6 or ":" not in one))}


def _local_addresses() -> list[str]:
    """Addresses of this host, those of one link with their zone (RFC 4007), without which they lead nowhere."""
    found = itertools.chain.from_iterable(psutil.net_if_addrs().values())
    return sorted({entry.address for entry in found if entry.family in {socket.AF_INET, socket.AF_INET6}})


def _outside() -> set[str]:
    """Addresses at which other hosts find this one, and those that stand for all of them."""
    return {
        *WILDCARDS,
        *(one for one in (text.partition("%")[0] for text in _local_addresses()) if not is_loopback(one)),
    }


def _listening(pid: int, admin: AdminAddress) -> set[tuple[str, int]]:
    """Where the process listens, and whoever does on the admin's port."""
    try:
        bound: Iterable[Any] = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        bound = ()
    port = admin.port if isinstance(admin, TcpAdmin) else 0
    found = {item.laddr for item in bound if item.status == psutil.CONN_LISTEN and item.laddr.port == port}
    try:
        own = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        own = []
    found |= {item.laddr for item in own if item.status == psutil.CONN_LISTEN}
    return {(address.ip, address.port) for address in found}


def _open_sockets(pid: int, admin: AdminAddress) -> list[str]:
    """Unix sockets of the process that other users may connect to, in another container as well."""
    try:
        inodes = {link[8:-1] for link in _descriptors(pid) if link.startswith("socket:[")}
        lines = Path(f"/proc/{pid}/net/unix").read_text(errors="replace").splitlines()[1:]
    except OSError as error:
        if is_exhausted(error):
            raise
        return []
    fields = [line.split(maxsplit=7) for line in lines]
    own = [one for one in fields if len(one) == 8 and int(one[3], 16) & _LISTENS and one[6] in inodes]
    # Whoever reaches an abstract one is on this host's network, as whoever reaches an admin on loopback.
    only_paths = isinstance(admin, TcpAdmin)
    return sorted({one[7] for one in own if _open_to_others(one[7]) and not (only_paths and one[7][0] == "@")})


def _descriptors(pid: int) -> list[str]:
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - a large folder, names alone
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))  # noqa: PTH115
        except OSError:
            continue
    return found


def _open_to_others(path: str) -> bool:
    if path.startswith("@"):
        return True
    try:
        return bool(Path(path).stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    except OSError:
        return False
