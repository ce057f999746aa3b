"""Lookup of destination names in a daemon thread, which neither the event loop nor the exit waits for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading

from kumadp.addresses import address_text
from kumadp.host.reexec.handover import HELD_SIGNALS


def look_up(host: str, port: int) -> asyncio.Future[list[tuple[int, tuple[str, int]]]]:
    """Look up families and addresses of a host for connect(2), without a deadline. The future raises OSError.

    The threads of the loop's executor are shared with tasks that must not wait for a dead name server.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[list[tuple[int, tuple[str, int]]]] = loop.create_future()

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        addresses: list[tuple[int, tuple[str, int]]] = []
        failure: OSError | None = None
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [(info[0], (address_text(info[4]), port)) for info in infos]
        except (OSError, UnicodeError) as error:
            failure = error if isinstance(error, OSError) else OSError(f"not a host name: {host}")
        # The loop may have ended.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, addresses, failure)

    def settle(addresses: list[tuple[int, tuple[str, int]]], failure: OSError | None) -> None:
        if result.cancelled():
            return
        if failure is not None:
            result.set_exception(failure)
        else:
            result.set_result(addresses)

    try:
        threading.Thread(target=work, name="access log lookup", daemon=True).start()
    except RuntimeError as error:
        # The host allows no further thread.
        result.set_exception(OSError(errno.EAGAIN, str(error)))
    return result
