"""Accepts connections within a limit, the same way on asyncio's loop and on uvloop.

Without descriptors asyncio stops accepting for a second and logs each time; uvloop closes the listener permanently.
Here a connection gets a slot (`kumadp.host.net.connection_limit`) before anything is created for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from typing import TYPE_CHECKING, cast

from kumadp.host.descriptors import EXHAUSTED
from kumadp.host.net.client_slots import client_of
from kumadp.host.net.connection_limit import ConnectionSlot

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from kumadp.host.net.connection_limit import ConnectionLimit, LimitedConnection

log = logging.getLogger("kumadp.host")

# Pause of accepting when the host has no descriptors or memory left (seconds).
_PAUSE = 0.2
# A connection is not displaced before the loop has read what it sent at once; newcomers wait for that long (seconds).
_SETTLING = 0.02
_NOTHING_TO_ACCEPT = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})


class Acceptor:
    """Accepts on a listening socket, which stays its owner's.

    ``make`` returns the protocol of a connection, a `LimitedConnection`; its argument is the callback to call when that
    connection has ended.
    """

    def __init__(
        self, sock: socket.socket, limit: ConnectionLimit, make: Callable[[Callable[[], None]], asyncio.BaseProtocol]
    ) -> None:
        self._socket = sock
        self._limit = limit
        self._make = make
        self._connecting: set[asyncio.Task[None]] = set()
        self._settled_at = 0.0
        # A connection that waits until it is decided whether it gets a slot.
        self._undecided: tuple[socket.socket, object] | None = None
        self._decided = asyncio.Event()
        self._decided.set()
        self._pause: asyncio.TimerHandle | None = None
        self._open = False

    def open(self) -> None:
        """Start accepting."""
        self._socket.setblocking(False)
        self._open = True
        self._listen()

    def stop(self) -> None:
        """Stop accepting; a connection that waits for a slot is closed."""
        self._open = False
        self._unlisten(None)
        if self._undecided is not None:
            (client, _), self._undecided = self._undecided, None
            client.close()
            self._decided.set()

    async def close(self) -> None:
        """Stop accepting; every connection accepted before has its protocol when this returns."""
        self._open = False
        self._unlisten(None)
        await self._decided.wait()
        if self._connecting:
            await asyncio.wait(set(self._connecting))

    def _listen(self) -> None:
        self._pause = None
        if self._open:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    def _unlisten(self, seconds: float | None) -> None:
        """Accept nothing for ``seconds``, or at all: the socket stays readable, and the loop would spin."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        loop = asyncio.get_running_loop()
        if self._socket.fileno() >= 0:
            loop.remove_reader(self._socket.fileno())
        if seconds is not None:
            self._pause = loop.call_later(seconds, self._listen)

    def _accept(self) -> None:
        # One per turn of the loop: a second attempt mostly finds nothing, and other callbacks get their turn.
        try:
            client, peer = self._socket.accept()
        except OSError as error:
            if error.errno in EXHAUSTED - _NOTHING_TO_ACCEPT:
                self._limit.log_exhausted(error)
                self._limit.slots.displace_any()
                self._unlisten(_PAUSE)
            # Any other error concerns only that client (accept(2)).
            return
        if not self._admit(client, peer):
            self._undecided = (client, peer)
            self._decided.clear()
            self._unlisten(None)
            asyncio.get_running_loop().call_later(_SETTLING, self._decide)

    def _decide(self) -> None:
        if self._undecided is None:
            return
        if self._admit(*self._undecided):
            self._undecided = None
            self._decided.set()
            self._listen()
        else:
            asyncio.get_running_loop().call_later(_SETTLING, self._decide)

    def _admit(self, client: socket.socket, peer: object) -> bool:
        """Serve a connection or turn it away; return False if that must be decided later."""
        try:
            name, local = client_of(peer)
            if not local:
                name, local = client_of(peer, client.getsockname())
        except OSError:
            client.close()
            return True
        slots, slot, loop = self._limit.slots, ConnectionSlot(), asyncio.get_running_loop()
        if not slots.make_room(name, local=local):
            if self._connecting or loop.time() < self._settled_at:
                # A connection that was just accepted may soon be displaceable.
                return False
            slots.refused += 1
            client.close()
            return True
        client.setblocking(False)

        def ended() -> None:
            slots.remove(name, slot)

        protocol = self._make(ended)
        slot.connection = cast("LimitedConnection", protocol)
        slots.add(name, slot)
        task = loop.create_task(self._connect(client, protocol, slot, ended))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return True

    async def _connect(
        self, client: socket.socket, protocol: asyncio.BaseProtocol, slot: ConnectionSlot, ended: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: protocol, client)
        except Exception as error:
            ended()
            with contextlib.suppress(OSError):
                client.close()
            log.debug("%s: a connection was lost at its start: %s", self._limit.name, error)
        self._settled_at = slot.displaceable_from = loop.time() + _SETTLING
