"""A network of one thread's own, in which this host has a link-local address."""

from __future__ import annotations

import ctypes
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

from tests.support.needs import need_netns
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESS, ZONE = "fe80::17", "lo"
SCOPED = f"{ADDRESS}%{ZONE}"
_CLONE_NEWNET = 0x40000000


def has_route() -> bool:
    """Return whether the kernel, which adds routes after the address, has that of `ADDRESS`."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        return sock.connect_ex((ADDRESS, 9, 0, socket.if_nametoindex(ZONE))) == 0


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
            poll(has_route, what="a route to the address")
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
