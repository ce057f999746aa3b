"""Discovery streams of Envoys on a Unix socket, each with one writer and at most one queued message per type."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Protocol

from kumadp.grpc.call import Call, StreamEnded

if TYPE_CHECKING:
    from collections.abc import Callable


class DownstreamListener(Protocol):
    """The owner of the streams."""

    def down_opened(self, stream: int, epoch: int) -> None:
        """An Envoy has opened a stream."""

    def down_message(self, stream: int, data: bytes) -> None:
        """A request was received."""

    def down_closed(self, stream: int) -> None:
        """A stream has ended."""


class _PendingResponses:
    """Responses queued on one stream: the newest one of each type, in the order in which the types were queued."""

    def __init__(self) -> None:
        self._messages: dict[str, tuple[bytes, bytes]] = {}
        self._filled = asyncio.Event()

    def put(self, type_url: str, data: bytes, more: bytes) -> None:
        self._messages[type_url] = (data, more)
        self._filled.set()

    async def take(self) -> tuple[bytes, bytes]:
        await self._filled.wait()
        message = self._messages.pop(next(iter(self._messages)))
        if not self._messages:
            self._filled.clear()
        return message


class Downstream:
    """The ADS streams of all running Envoys."""

    def __init__(self, listener: DownstreamListener, epoch_of: Callable[[int], int]) -> None:
        self._listener = listener
        self._epoch_of = epoch_of
        self._pending: dict[int, _PendingResponses] = {}
        self._numbers = itertools.count(1)

    async def serve(self, call: Call, pid: int) -> None:
        """Serve one stream of the process ``pid`` until it ends."""
        stream = next(self._numbers)
        pending = self._pending[stream] = _PendingResponses()
        writer = asyncio.create_task(_write(call, pending), name="relay downstream writer")
        self._listener.down_opened(stream, self._epoch_of(pid))
        try:
            while True:
                self._listener.down_message(stream, await call.receive())
        finally:
            writer.cancel()
            del self._pending[stream]
            self._listener.down_closed(stream)

    def send(self, stream: int, type_url: str, data: bytes, more: bytes = b"") -> None:
        """Queue a response, ``data`` and then ``more``; it replaces one of its type that has not been sent yet."""
        if (pending := self._pending.get(stream)) is not None:
            pending.put(type_url, data, more)


async def _write(call: Call, pending: _PendingResponses) -> None:
    with contextlib.suppress(StreamEnded):
        while True:
            data, more = await pending.take()
            await call.send(data, more=more)
            # Free it before the next one is queued.
            del data
