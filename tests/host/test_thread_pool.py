"""A host that allows no further thread: work waits for the threads there are, and nothing fails."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from kumadp.host.reexec.handover import block_signals_in_threads
from kumadp.host.thread_pool import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that allows so many threads from now on."""
    allowed, start = [0], threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if not allowed[0]:
            # As CPython reports EAGAIN of pthread_create(3).
            raise RuntimeError("can't start new thread")
        allowed[0] -= 1
        start(thread)

    def change(count: int) -> None:
        allowed[0] = count
        monkeypatch.setattr(threading.Thread, "start", limited)

    return change


def test_work_waits_for_the_threads_there_are(allow: Callable[[int], None]) -> None:
    with ThreadPool(8) as pool:
        release = threading.Event()
        allow(1)
        first = pool.submit(release.wait)
        others = [pool.submit(int, number) for number in range(5)]
        assert not any(future.done() for future in others)
        release.set()
        assert [future.result(30) for future in others] == list(range(5))
        assert first.result(30)


def test_without_any_thread_nothing_is_done_later(allow: Callable[[int], None]) -> None:
    done: list[int] = []
    with ThreadPool(8) as pool:
        allow(0)
        with pytest.raises(BlockingIOError, match="thread cannot be started"):
            pool.submit(done.append, 1)
        allow(1)
        pool.submit(done.append, 2).result(30)
    assert done == [2]


def test_files_can_be_written_although_no_thread_can_be_started(allow: Callable[[int], None]) -> None:
    async def main() -> list[int]:
        await block_signals_in_threads()
        allow(0)
        return await asyncio.gather(*(asyncio.to_thread(int, number) for number in range(20)))

    with asyncio.Runner() as runner:
        assert runner.run(main()) == list(range(20))
        # The loop ends its executor in a thread.
        allow(1)


def test_a_start_without_any_thread_names_the_reason(allow: Callable[[int], None]) -> None:
    with asyncio.Runner() as runner:
        allow(0)
        with pytest.raises(BlockingIOError, match="thread cannot be started"):
            runner.run(block_signals_in_threads())
        allow(1)
