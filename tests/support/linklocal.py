"""A network of one thread's own, in which this host has a link-local address."""

from __future__ import annotations

import ctypes
import subprocess
import threading
from typing import TYPE_CHECKING

from tests.support.needs import need_netns

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESS, ZONE = "fe80::17", "lo"
SCOPED = f"{ADDRESS}%{ZONE}"
_CLONE_NEWNET = 0x40000000


def on_its_own_network(work: Callable[[], None]) -> None:
    """Do it in a thread, and the threads that it starts, with no interface but loopback, which has `SCOPED` too."""
    need_netns()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            # os.unshare is there from Python 3.12 on.
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            for command in (f"address add {ADDRESS}/64 dev {ZONE} nodad", f"link set {ZONE} up"):
                subprocess.run(["ip", *command.split()], check=True, capture_output=True)
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    if thread.is_alive():
        raise AssertionError("it does not end")
    if failures:
        raise failures[0]
