"""Threads for work that may block, on a host that may allow no further thread (RLIMIT_NPROC, pids.max)."""

from __future__ import annotations

import contextlib
import errno
import queue
from concurrent.futures import ThreadPoolExecutor


class ThreadPool(ThreadPoolExecutor):
    """An executor whose work waits for the threads that it has, if the host allows no further one.

    If it has none, `submit` raises an OSError (EAGAIN), and the work is not done.
    """

    def _adjust_thread_count(self) -> None:
        # By now the work is in the queue.
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                with contextlib.suppress(queue.Empty):
                    self._work_queue.get_nowait()
                raise OSError(errno.EAGAIN, f"a thread cannot be started: {error}") from None
