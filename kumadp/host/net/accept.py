"""Accepting connections within bounds, the same on asyncio's loop and on uvloop.

asyncio stops accepting for a second where descriptors are out and logs each time; uvloop closes the listener for ever.
Here a connection has a place before anything is made for it (`kumadp.host.net.connection_shares`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import time
from typing import TYPE_CHECKING, Protocol, cast

from kumadp.host.descriptors import EXHAUSTED, share
from kumadp.host.log.throttle import Sparse
from kumadp.host.net.connection_shares import Shares, client_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

log = logging.getLogger("kumadp.host")

MOST_NETWORK, MOST_UNIX = 256, 64
# How long nothing is accepted where the host has no descriptors or memory left (seconds).
_PAUSE = 0.2
# A connection is not displaced before the loop has read what it sent at once, and others wait for that (seconds).
_YOUTH = 0.02
_LINE_EACH = 60.0
_NOTHING = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})


class Guest(Protocol):
    """A connection's protocol (`asyncio.Protocol`) that can be closed from outside."""

    def may_go(self) -> bool:
        """Whether nothing is being done for it: it is idle, or has not sent all it wants."""

    def go(self) -> None:
        """Abort it."""


class _Place:
    """A guest's place; what it sent before it was accepted is read before it may be displaced."""

    def __init__(self) -> None:
        self.guest: Guest | None = None
        self.grown = math.inf

    def may_go(self) -> bool:
        return asyncio.get_running_loop().time() >= self.grown and self.guest is not None and self.guest.may_go()

    def go(self) -> None:
        if self.guest is not None:
            self.guest.go()


class Door:
    """The places of one server under its ``name``, and what was counted at it. Many sockets may share one."""

    def __init__(self, name: str, most: int, *, each: int | None = None, reserve: int = 0) -> None:
        self.name = name
        self.shares: Shares[_Place] = Shares(most, each or most, reserve)
        self.bad = 0
        """Requests that could not be understood."""
        self._quiet_until, self._logged = 0.0, 0
        self._sparse = Sparse()
        _doors[name] = self

    @classmethod
    def for_socket(cls, name: str, sock: socket.socket, most: int = MOST_UNIX) -> Door:
        """For a Unix socket ``most`` places, for one that the network reaches by the limit of descriptors."""
        if isinstance(sock.getsockname(), str):
            return cls(name, most)
        most = share(MOST_NETWORK)
        return cls(name, most, each=max(1, most // 2), reserve=most // 4)

    def note_bad(self, peer: str, reason: str) -> None:
        """Count a request that could not be understood; at most a line of log a minute."""
        self.bad += 1
        now = time.monotonic()
        if now >= self._quiet_until:
            more = self.bad - self._logged - 1
            before = f" ({more} more since the last line)" if more else ""
            log.warning("%s: bad request from %s: %s%s", self.name, peer or "this host", reason, before)
            self._quiet_until, self._logged = now + _LINE_EACH, self.bad

    def note_exhausted(self, error: OSError) -> None:
        """Log that nothing can be accepted."""
        if self._sparse.count("exhausted", time.monotonic()) is not None:
            reason = error.strerror or os.strerror(error.errno or 0)
            log.error("%s: new connections wait: %s", self.name, reason)

    def status(self) -> dict[str, int]:
        """JSON types."""
        shares = self.shares
        return {
            "open": len(shares),
            "most": shares.most,
            "displaced": shares.displaced,
            "refused": shares.refused,
            "bad_requests": self.bad,
        }


_doors: dict[str, Door] = {}


def doors() -> dict[str, dict[str, int]]:
    """What each server of this process counted, by its name."""
    return {name: door.status() for name, door in _doors.items()}


class Acceptor:
    """Accepts on a listening socket, which stays its owner's.

    ``make`` gives the protocol of a connection, a `Guest`, and gets what to call when that has ended.
    """

    def __init__(
        self, sock: socket.socket, door: Door, make: Callable[[Callable[[], None]], asyncio.BaseProtocol]
    ) -> None:
        self._socket = sock
        self._door = door
        self._make = make
        self._making: set[asyncio.Task[None]] = set()
        self._grown = 0.0
        self._held: tuple[socket.socket, object] | None = None
        self._decided = asyncio.Event()
        self._decided.set()
        self._paused: asyncio.TimerHandle | None = None
        self._open = False

    def open(self) -> None:
        """Accept from now on."""
        self._socket.setblocking(False)
        self._open = True
        self._listen()

    def stop(self) -> None:
        """Accept nothing more; what waits for a place goes."""
        self._open = False
        self._unlisten(None)
        if self._held is not None:
            held, self._held = self._held, None
            held[0].close()
            self._decided.set()

    async def close(self) -> None:
        """Accept nothing more; those that were accepted have their protocols when this returns."""
        self._open = False
        self._unlisten(None)
        await self._decided.wait()
        if self._making:
            await asyncio.wait(set(self._making))

    def _listen(self) -> None:
        self._paused = None
        if self._open:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def _unlisten(self, seconds: float | None) -> None:
        """Accept nothing for a while, or at all: the socket stays readable, and the loop would spin."""
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        loop = asyncio.get_running_loop()
        if self._socket.fileno() >= 0:
            loop.remove_reader(self._socket.fileno())
        if seconds is not None:
            self._paused = loop.call_later(seconds, self._listen)

    def _accept(self) -> None:
        # One in a turn of the loop: a second try is mostly for nothing, and others have their turn.
        try:
            client, peer = self._socket.accept()
        except OSError as error:
            if error.errno in EXHAUSTED - _NOTHING:
                self._door.note_exhausted(error)
                self._door.shares.displace_any()
                self._unlisten(_PAUSE)
            # Whatever else went wrong is that client's own (accept(2)).
            return
        if not self._admit(client, peer):
            self._held = (client, peer)
            self._decided.clear()
            self._unlisten(None)
            asyncio.get_running_loop().call_later(_YOUTH, self._admit_held)

    def _admit_held(self) -> None:
        if self._held is None:
            return
        if self._admit(*self._held):
            self._held = None
            self._decided.set()
            self._listen()
        else:
            asyncio.get_running_loop().call_later(_YOUTH, self._admit_held)

    def _admit(self, client: socket.socket, peer: object) -> bool:
        """Serve a connection or turn it away; False where that is decided later."""
        try:
            name, local = client_of(peer)
            if not local:
                name, local = client_of(peer, client.getsockname())
        except OSError:
            client.close()
            return True
        shares, place, loop = self._door.shares, _Place(), asyncio.get_running_loop()
        if not shares.make_room(name, local=local):
            if self._making or loop.time() < self._grown:
                # One of those that are here may go soon.
                return False
            shares.refused += 1
            client.close()
            return True
        client.setblocking(False)

        def ended() -> None:
            shares.remove(name, place)

        guest = self._make(ended)
        place.guest = cast("Guest", guest)
        shares.add(name, place)
        task = loop.create_task(self._connect(client, guest, place, ended))
        self._making.add(task)
        task.add_done_callback(self._making.discard)
        return True

    async def _connect(
        self, client: socket.socket, guest: asyncio.BaseProtocol, place: _Place, ended: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: guest, client)
        except Exception as error:
            ended()
            with contextlib.suppress(OSError):
                client.close()
            log.debug("%s: a connection was lost at its start: %s", self._door.name, error)
        self._grown = place.grown = loop.time() + _YOUTH
