"""The choice between state of the world and delta, before each stream to the control plane. Pure, but for a query.

No control plane says of a stream that it is of the wrong form: Kuma 2.8 leaves delta unanswered, Kuma 3.0 state of the
world (measured). Its bootstrap shows what it speaks. Never change without a sign: closing the right stream takes the
data plane out of the mesh for 10 s, closing a wrong one costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.grpc.call import UNIMPLEMENTED
from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.refusal import StreamRefusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def _no_query() -> XdsProtocol | None:
    return None


class ProtocolChoice:
    """``first`` is the protocol of the bootstrap in hand; ``stale``: it is not of the control plane as it is now.

    ``query`` requests the bootstrap, and returns the protocol that it names, None if there is no bootstrap.
    """

    def __init__(
        self,
        first: XdsProtocol = XdsProtocol.SOTW,
        query: Callable[[], Awaitable[XdsProtocol | None]] = _no_query,
        *,
        stale: bool = False,
    ) -> None:
        self._query = query
        self._stale = stale
        # What the last bootstrap named, and what that control plane does not implement.
        self._named = first
        self._unimplemented: XdsProtocol | None = None
        self.present = first
        """The protocol of the present stream, or of the last one."""

    @property
    def is_stale(self) -> bool:
        """True if the control plane has sent no bootstrap for the present stream."""
        return self._stale

    async def before_stream(self) -> XdsProtocol:
        """Return the protocol of the stream that begins now, to a control plane that accepts connections."""
        if self._stale:
            named = await self._query()
            if named is not None:
                self._stale = False
                self._note(named)
        return self.present

    async def is_wrong(self) -> bool:
        """Return whether a stream without a response is to be replaced by one of the other protocol."""
        named = await self._query()
        self._stale = self._stale and named is None
        if named is None or named is self.present:
            return False
        self._unimplemented = None
        self._named = self.present = named
        return True

    def note_end(self, refusal: StreamRefusal, status: int | None) -> bool:
        """Note why a stream has ended; return whether one of the other protocol is to be opened at once.

        The control plane may be of another version by the next stream, unless it has just refused one since it still
        holds the former.
        """
        self._stale = self._stale or refusal is not StreamRefusal.ACTIVE
        if status != UNIMPLEMENTED:
            return False
        # If it implements neither, there is a wait in between.
        at_once = self._unimplemented is None
        self._unimplemented, self.present = self.present, _other(self.present)
        # The bootstrap in hand is the one of this stream.
        self._stale = self._stale and not at_once
        return at_once

    def note_closed(self) -> None:
        """Note that we have closed the stream ourselves: much time may pass until the next one."""
        self._stale = True

    def _note(self, named: XdsProtocol) -> None:
        if named is not self._named:
            self._unimplemented = None
        self._named = named
        self.present = _other(named) if named is self._unimplemented else named


def _other(protocol: XdsProtocol) -> XdsProtocol:
    return XdsProtocol.SOTW if protocol is XdsProtocol.DELTA else XdsProtocol.DELTA
