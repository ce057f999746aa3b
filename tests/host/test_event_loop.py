"""The loop without uvloop: names that are never answered hold up nothing but names."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

from kumadp.host.event_loop import EventLoop
from kumadp.host.reexec.handover import block_signals_in_threads

if TYPE_CHECKING:
    import pytest


def test_lookups_that_hang_hold_up_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, real = threading.Event(), socket.getaddrinfo

    def silent(host: Any, *more: Any, **rest: Any) -> Any:
        if host == "silent.mesh":
            answer.wait(60)
        return real("127.0.0.1", *more, **rest)

    monkeypatch.setattr(socket, "getaddrinfo", silent)

    async def main() -> None:
        await block_signals_in_threads()
        loop = asyncio.get_running_loop()
        lookups = [asyncio.ensure_future(loop.getaddrinfo("silent.mesh", 80)) for _ in range(100)]
        async with asyncio.timeout(30):
            # As many as there could be threads.
            assert await asyncio.gather(*(asyncio.to_thread(lambda: 1) for _ in range(50))) == [1] * 50
        assert not any(lookup.done() for lookup in lookups)
        answer.set()
        (actual, *_) = await asyncio.gather(*lookups)
        assert actual[0][4] == ("127.0.0.1", 80)

    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(main())
