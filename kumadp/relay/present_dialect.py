"""The dialect of the present stream to the control plane, and what a new one begins with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kumadp.relay.delta import Delta, Memory
from kumadp.relay.dialect import Arrival, Dialect, Sotw, XdsProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.relay.messages import Outline, Request
    from kumadp.relay.snapshot import RelaySnapshot

# From this size on, in bytes, a message is read in a thread: digests cost 3 ms per megabyte.
LARGE = 256 << 10


class PresentDialect:
    """One dialect at a time. ``snapshot`` returns what is remembered, ``largest`` bounds a type, in bytes."""

    def __init__(self, snapshot: Callable[[], RelaySnapshot], largest: int) -> None:
        self._snapshot = snapshot
        self._largest = largest
        self._dialect: Dialect = Sotw()
        self._prepared = XdsProtocol.SOTW
        self._memory = Memory()

    async def prepare(self, protocol: XdsProtocol) -> str:
        """Read what Envoy has accepted, which a delta stream begins with; return the gRPC method of the stream."""
        if protocol is XdsProtocol.DELTA:
            types = self._snapshot().types
            large = sum(len(saved.accepted or b"") for saved in types) > LARGE
            self._memory = await asyncio.to_thread(Memory, types, self._memory) if large else Memory(types)
        self._prepared = protocol
        return Sotw.method if protocol is XdsProtocol.SOTW else Delta.method

    def begin(self) -> None:
        """The prepared stream is open. Envoy may have accepted something since `prepare`."""
        if self._prepared is XdsProtocol.SOTW:
            self._dialect = Sotw()
        else:
            self._dialect = Delta(Memory(self._snapshot().types, self._memory), largest=self._largest)

    def encode(self, request: Request) -> tuple[tuple[bytes, ...], bool]:
        """Return the messages to send for a request, and whether the control plane answers them at once."""
        messages = self._dialect.encode(request)
        return messages, self._dialect.expects_answer(request)

    async def read(self, data: bytes) -> Arrival:
        """Read a message of the control plane; `take` adopts it. Raises BadMessage."""
        dialect = self._dialect
        if dialect.weight(data) > LARGE:
            return await asyncio.to_thread(_read_with_digest, dialect, data)
        return dialect.read(data)

    def take(self, arrival: Arrival) -> tuple[bytes, ...]:
        """Adopt what was read; return what to send at once."""
        # The stream is served: it would keep old responses in memory.
        self._memory = Memory()
        return self._dialect.take(arrival)

    def drop(self, outline: Outline) -> None:
        """Note that a response was dropped unread."""
        self._dialect.drop(outline)


def _read_with_digest(dialect: Dialect, data: bytes) -> Arrival:
    """Read a message and compute the digest of the response, which is cached. For a thread."""
    arrival = dialect.read(data)
    _ = arrival.response.digest if arrival.response is not None else None
    return arrival
