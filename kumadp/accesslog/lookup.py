"""Names of destinations, looked up in a thread that nobody has to wait for, not even the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading

from kumadp.addresses import address_text
from kumadp.host.reexec.handover import HELD_SIGNALS


def look_up(host: str, port: int) -> asyncio.Future[list[tuple[int, tuple[str, int]]]]:
    """Families and addresses of a host, as connect(2) takes them; it may take as long as the resolver likes.

    The threads of the loop's executor are shared with what must not wait for a dead name server.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[tuple[int, tuple[str, int]]]] = loop.create_future()

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        answers: list[tuple[int, tuple[str, int]]] = []
        failure: OSError | None = None
        try:
            answered = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers = [(one[0], (address_text(one[4]), port)) for one in answered]
        except (OSError, UnicodeError) as error:
            failure = error if isinstance(error, OSError) else OSError(f"no name of a host: {host}")
        # The loop may have ended.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, answers, failure)

    def settle(answers: list[tuple[int, tuple[str, int]]], failure: OSError | None) -> None:
        if found.cancelled():
            return
        if failure is not None:
            found.set_exception(failure)
        else:
            found.set_result(answers)

    threading.Thread(target=work, name="access log lookup", daemon=True).start()
    return found
