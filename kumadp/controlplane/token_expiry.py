"""When the data plane token expires: in the status, and a warning in time."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from kumadp.controlplane.token import expires_at, is_renewed_by_kubelet
from kumadp.errors import ControlPlaneRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.core.status import Status

# How long before its end there is a warning (seconds).
NOTICE = 86_400.0
# Timers of an event loop are for no longer than this (seconds).
_LONGEST = 86_400.0


class TokenWatch:
    """Follows the token that was read last. ``read`` reads it again, in a thread, before there is a warning.

    A token of Kubernetes is renewed by the kubelet within its last day; only its end is worth a warning.
    """

    def __init__(self, status: Status, read: Callable[[], str]) -> None:
        self._status = status
        self._read = read
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.Task[None] | None = None

    def note(self, token: str) -> None:
        """Follow this token from now on; to be called on the event loop."""
        end = expires_at(token)
        self._status.facts["token_expires"] = end
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if end is None:
            self._status.set_warning("token", "")
            return
        left = end - time.time()
        notice = 0.0 if is_renewed_by_kubelet(token) else NOTICE
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(max(end, 0.0), 253402300799.0)))
        if left <= 0:
            self._status.set_warning(
                "token", f"it expired at {at}: write a new one, the control plane rejects this one"
            )
        elif left <= notice:
            self._status.set_warning("token", f"it expires at {at}: write a new one in time")
        else:
            self._status.set_warning("token", "")
        due = left - notice if left > notice else left
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(min(due, _LONGEST), self._read_again)

    def _read_again(self) -> None:
        self._reading = asyncio.get_running_loop().create_task(self._reread())

    async def _reread(self) -> None:
        try:
            token = await asyncio.to_thread(self._read)
        except (ControlPlaneRefused, OSError):
            # The next request that needs the token reports what is wrong with the file.
            return
        self.note(token)
