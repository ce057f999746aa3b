"""The wait for the first response of a stream, which never comes if the stream is of the wrong protocol."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kumadp.grpc.call import Call, Oversized
    from kumadp.relay.protocol_choice import ProtocolChoice

# Seconds until a stream without any response may be of the wrong form. Registration takes 1.3 s, and Kuma reports an
# error of a stream 10 s late.
SILENT_AFTER = 12.0
# The same if the control plane has sent no bootstrap for this stream, e.g. since it rejects the token.
UNCONFIRMED_AFTER = 2.0
GROWTH, LONGEST_SILENCE = 2.0, 60.0


class WrongProtocol(Exception):
    """A stream without a response is of the wrong protocol."""


class FirstResponse:
    """Waits, and queries the bootstrap while there is silence; `hurry` has it queried now."""

    def __init__(self, choice: ProtocolChoice, largest: int) -> None:
        self._choice = choice
        self._largest = largest
        self._hurry = asyncio.Event()

    def hurry(self) -> None:
        """Query now: the reason why there was no bootstrap may be gone."""
        self._hurry.set()

    def calm(self) -> None:
        """Forget `hurry`: all that a query and a stream depend on is about to be read again."""
        self._hurry.clear()

    async def receive(self, call: Call) -> bytes | Oversized:
        """Return the first message. Raises StreamEnded, and WrongProtocol if there will be none."""
        receiving = asyncio.ensure_future(call.receive_or_skip(self._largest))
        # A round that is cancelled leaves nobody to look at how it ended.
        receiving.add_done_callback(lambda task: task.cancelled() or task.exception())
        silent_after = SILENT_AFTER
        try:
            while not await self._wait(receiving, UNCONFIRMED_AFTER if self._choice.is_stale else silent_after):
                hurried = self._hurry.is_set()
                self._hurry.clear()
                if await self._choice.is_wrong() and not receiving.done():
                    raise WrongProtocol
                silent_after = silent_after if hurried else min(silent_after * GROWTH, LONGEST_SILENCE)
            return receiving.result()
        finally:
            receiving.cancel()

    async def _wait(self, receiving: asyncio.Future[bytes | Oversized], seconds: float) -> bool:
        """Return whether there is a message or an end, after ``seconds`` at most, or when there is hurry."""
        hurry = asyncio.ensure_future(self._hurry.wait())
        try:
            waiting: set[asyncio.Future[Any]] = {receiving, hurry}
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
        return receiving.done()
