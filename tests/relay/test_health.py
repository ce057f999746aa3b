"""Which health reports reach the control plane while one Envoy replaces another."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

from kumadp.relay.health import HealthRelay
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kumadp.grpc.call import Call

OLD, NEW = 100, 200


class _Call:
    """One side of a stream; messages of the other side come from ``received``."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.sent: list[bytes] = []

    async def receive(self, *, largest: int = 0) -> bytes:
        return await self.received.get()

    async def send(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        pass


async def test_the_first_report_of_an_envoy_that_came_up_beside_another_is_not_passed_on() -> None:
    opened: list[_Call] = []

    async def open_call(_path: str) -> Call:
        opened.append(_Call())
        return cast("Call", opened[-1])

    health = HealthRelay(open_call, lambda pid: {OLD: 1, NEW: 2}[pid])
    old, new = _Call(), _Call()
    streams = [asyncio.ensure_future(health.serve(cast("Call", old), OLD))]
    for message in (b"node", b"well"):
        old.received.put_nowait(message)
    await poll_async(_has(lambda: opened[:1] and opened[0].sent == [b"node", b"well"]), what="the old one's report")
    health.hold = True
    streams.append(asyncio.ensure_future(health.serve(cast("Call", new), NEW)))
    for message in (b"node", b"not yet LIVE"):
        new.received.put_nowait(message)
    await poll_async(
        _has(lambda: opened[1:] and opened[1].sent == [b"node"] and new.received.empty()), what="its stream"
    )
    health.hold = False
    old.received.put_nowait(b"leaving")
    new.received.put_nowait(b"was not LIVE when it looked")
    await poll_async(_has(new.received.empty), what="its first report read")
    # Reports that nobody took yet give way to the next.
    for _ in range(10):
        await asyncio.sleep(0)
    new.received.put_nowait(b"well too")
    await poll_async(_has(lambda: opened[1].sent[-1] == b"well too"), what="the new one's report")
    assert (opened[0].sent, opened[1].sent) == ([b"node", b"well"], [b"node", b"well too"])
    for stream in streams:
        stream.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stream


def _has(look: Callable[[], object]) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return bool(look())

    return probe
