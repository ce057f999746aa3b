"""Answers readiness probes while a new program starts in this process: a probe has one second, a start may need more.

The previous program provides the response, and the sockets among those that it hands over. A thread answers from the
first moment on: only the standard library and msgspec are imported before. A client that connects just when the new
server starts is answered by either.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from kumadp.decoding import decode_msgpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# The number of the memfd that the previous program left, and a flag that this is only a check; children get neither.
VARIABLE = "KUMADP_HANDOVER"
CHECK_VARIABLE = "KUMADP_HANDOVER_CHECK"
PATH = b"/ready"
# A start that takes longer is stuck: then there is no answer, which is the truth (seconds).
MAX_SECONDS = 30.0
# Limits of a request's head, in seconds and bytes.
_HEAD_WITHIN = 1.0
_MAX_HEAD = 16 * 1024
# Concurrent connections; the oldest is closed for a newer one.
_MAX_CONNECTIONS = 128
# Pause if nothing can be accepted, since the sockets stay readable (seconds).
_PAUSE = 0.05
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class InterimAnswer(msgspec.Struct, frozen=True):
    """The whole response (``answer``) to ``GET /ready`` on the listening ``sockets``, which are descriptor numbers."""

    sockets: tuple[int, ...] = ()
    answer: bytes = b""


class _HandoverPart(msgspec.Struct):
    """The part of a `kumadp.host.reexec.handover.Handover` that is needed here."""

    interim: InterimAnswer = msgspec.field(default_factory=InterimAnswer, name="meanwhile")


def start(environ: Mapping[str, str]) -> None:
    """Answer as the previous program requested, until `stop`. Does nothing without one, or if we are only checked."""
    if VARIABLE not in environ or CHECK_VARIABLE in environ:
        return
    try:
        memfd = int(environ[VARIABLE])
        interim = decode_msgpack(os.pread(memfd, os.fstat(memfd).st_size, 0), _HandoverPart).interim
    except (ValueError, OSError):
        # `kumadp.host.reexec.handover.receive` reports what is wrong.
        return
    if interim.answer and interim.sockets:
        # Without a thread or a descriptor for it, clients wait until the program serves.
        with contextlib.suppress(OSError, RuntimeError):
            _responders.append(_InterimResponder(interim))


def stop(sock: socket.socket | None = None) -> None:
    """Stop accepting on this socket (None: on all); clients that are connected are still answered."""
    for responder in _responders:
        responder.stop(sock.getsockname() if sock is not None else None)


class _InterimResponder:
    """The thread that answers, with its own duplicates of the sockets."""

    def __init__(self, interim: InterimAnswer) -> None:
        self._answer = interim.answer
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._wake = socket.socketpair()
        self._wakeup.setblocking(False)
        self._stopped: list[object] = []
        self._deadlines: dict[socket.socket, float] = {}
        self._listening: list[socket.socket] = []
        for number in interim.sockets:
            sock = socket.socket(fileno=os.dup(number))
            sock.setblocking(False)
            self._listening.append(sock)
            self._watch(sock, lambda sock=sock: self._accept(sock))  # type: ignore[misc]
        self._watch(self._wakeup, self._handle_wakeup)
        self._until = time.monotonic() + MAX_SECONDS
        try:
            threading.Thread(target=self._run, name="interim", daemon=True).start()
        except RuntimeError:
            with self._selector:
                self._close_listeners(self._listening.copy())
            self._close_wakeup()
            raise

    def stop(self, address: object) -> None:
        """Have the thread stop listening on the socket with this address, None: on all."""
        self._stopped.append(address)
        with contextlib.suppress(OSError):
            self._wake.send(b"x")

    def _watch(self, what: socket.socket, act: Callable[[], None]) -> None:
        self._selector.register(what, selectors.EVENT_READ, act)

    def _run(self) -> None:
        with self._selector:
            while self._listening or self._deadlines:
                for key, _ in self._selector.select(0.25):
                    key.data()
                now = time.monotonic()
                for client in [client for client, due in self._deadlines.items() if due < now]:
                    self._on_time_over(client)
                if now > self._until:
                    self._close_listeners(self._listening.copy())
        self._close_wakeup()

    def _close_wakeup(self) -> None:
        self._wakeup.close()
        self._wake.close()

    def _handle_wakeup(self) -> None:
        self._wakeup.recv(64)
        stopped = self._stopped.copy()
        self._close_listeners([sock for sock in self._listening if None in stopped or sock.getsockname() in stopped])

    def _close_listeners(self, sockets: list[socket.socket]) -> None:
        for sock in sockets:
            self._listening.remove(sock)
            self._selector.unregister(sock)
            sock.close()

    def _accept(self, sock: socket.socket) -> None:
        try:
            client, _ = sock.accept()
        except BlockingIOError:
            return
        except OSError:
            # No descriptor is left: close the oldest client, or wait until one is free.
            if self._deadlines:
                self._close(next(iter(self._deadlines)))
            else:
                time.sleep(_PAUSE)
            return
        client.setblocking(False)
        if len(self._deadlines) >= _MAX_CONNECTIONS:
            self._close(next(iter(self._deadlines)))
        self._deadlines[client] = time.monotonic() + _HEAD_WITHIN
        head = bytearray()
        self._watch(client, lambda: self._read(client, head))

    def _read(self, client: socket.socket, head: bytearray) -> None:
        if client not in self._deadlines:
            return
        try:
            data = client.recv(_MAX_HEAD)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        head += data
        whole = b"\r\n\r\n" in head
        if data and not whole and len(head) < _MAX_HEAD:
            return
        if whole:
            words = head.split(b" ", 2)
            path = words[1].partition(b"?")[0] if len(words) > 2 else b""
            with contextlib.suppress(OSError):
                client.sendall(self._answer if path == PATH else _NOT_FOUND)
                client.shutdown(socket.SHUT_WR)
        self._close(client)

    def _on_time_over(self, client: socket.socket) -> None:
        # The thread may not have run for a while: what the client has sent is read first.
        self._selector.get_key(client).data()
        if client in self._deadlines:
            self._close(client)

    def _close(self, client: socket.socket) -> None:
        del self._deadlines[client]
        self._selector.unregister(client)
        client.close()


_responders: list[_InterimResponder] = []
