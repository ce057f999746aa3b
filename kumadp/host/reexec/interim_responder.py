"""Answers for readiness while a new program starts in this process: a probe has one second, a start may need more.

The program before us says what is to be answered, and at which of the sockets that it hands over. A thread does it from
the first moment on: nothing but the standard library and msgspec is imported until then. Who connects just when the
new server begins is answered here or there.
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

# The number of the memfd that the program before us left, and nothing else; children get neither.
VARIABLE = "KUMADP_HANDOVER"
CHECK_VARIABLE = "KUMADP_HANDOVER_CHECK"
PATH = b"/ready"
# A start that takes longer than this is stuck: then nobody answers, which is the truth (seconds).
LONGEST = 30.0
# How long a client may take to ask, and how much it may say.
_HEAD_WITHIN = 1.0
_LONGEST_HEAD = 16 * 1024
# Connections at a time; the oldest goes for a newer one.
_MOST = 128
# Where nothing can be accepted, the sockets stay readable: a moment of rest (seconds).
_REST = 0.05
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class InterimAnswer(msgspec.Struct, frozen=True):
    """The whole ``answer`` to ``GET /ready`` on the listening ``sockets``, numbers of descriptors."""

    sockets: tuple[int, ...] = ()
    answer: bytes = b""


class _Handed(msgspec.Struct):
    """The part of a `kumadp.host.reexec.handover.Handover` that is of interest here."""

    meanwhile: InterimAnswer = InterimAnswer()


def begin(environ: Mapping[str, str]) -> None:
    """Answer as the program before us asks for, until `end`; nothing at a start of our own, and where we are tried."""
    if VARIABLE not in environ or CHECK_VARIABLE in environ:
        return
    try:
        memfd = int(environ[VARIABLE])
        handed = decode_msgpack(os.pread(memfd, os.fstat(memfd).st_size, 0), _Handed).meanwhile
    except (ValueError, OSError):
        # Whoever reads it next says what is wrong with it.
        return
    if handed.answer and handed.sockets:
        _running.append(_Answering(handed))


def end(sock: socket.socket | None = None) -> None:
    """Accept nothing more on this socket, None: on any; who has connected already is answered."""
    for one in _running:
        one.end(sock.getsockname() if sock is not None else None)


class _Answering:
    """The thread and what it listens on, as duplicates of its own."""

    def __init__(self, handed: InterimAnswer) -> None:
        self._answer = handed.answer
        self._selector = selectors.DefaultSelector()
        self._told, self._tell = socket.socketpair()
        self._told.setblocking(False)
        self._over: list[object] = []
        self._deadlines: dict[socket.socket, float] = {}
        self._listening: list[socket.socket] = []
        for number in handed.sockets:
            sock = socket.socket(fileno=os.dup(number))
            sock.setblocking(False)
            self._listening.append(sock)
            self._watch(sock, lambda sock=sock: self._accept(sock))  # type: ignore[misc]
        self._watch(self._told, self._look)
        self._until = time.monotonic() + LONGEST
        threading.Thread(target=self._run, name="meanwhile", daemon=True).start()

    def end(self, address: object) -> None:
        """Begin to end, with the socket that is bound to this address, None: altogether."""
        self._over.append(address)
        with contextlib.suppress(OSError):
            self._tell.send(b"x")

    def _watch(self, what: socket.socket, act: Callable[[], None]) -> None:
        self._selector.register(what, selectors.EVENT_READ, act)

    def _run(self) -> None:
        with self._selector:
            while self._listening or self._deadlines:
                for key, _ in self._selector.select(0.25):
                    key.data()
                now = time.monotonic()
                for client in [one for one, due in self._deadlines.items() if due < now]:
                    self._close(client)
                if now > self._until:
                    self._leave(self._listening.copy())
        self._told.close()
        self._tell.close()

    def _look(self) -> None:
        self._told.recv(64)
        over = self._over.copy()
        self._leave([sock for sock in self._listening if None in over or sock.getsockname() in over])

    def _leave(self, sockets: list[socket.socket]) -> None:
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
            # No descriptor is left: the oldest client's is given up, or others are waited for.
            if self._deadlines:
                self._close(next(iter(self._deadlines)))
            else:
                time.sleep(_REST)
            return
        client.setblocking(False)
        if len(self._deadlines) >= _MOST:
            self._close(next(iter(self._deadlines)))
        self._deadlines[client] = time.monotonic() + _HEAD_WITHIN
        head = bytearray()
        self._watch(client, lambda: self._read(client, head))

    def _read(self, client: socket.socket, head: bytearray) -> None:
        if client not in self._deadlines:
            return
        try:
            data = client.recv(_LONGEST_HEAD)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        head += data
        whole = b"\r\n\r\n" in head
        if data and not whole and len(head) < _LONGEST_HEAD:
            return
        if whole:
            words = head.split(b" ", 2)
            asked = words[1].partition(b"?")[0] if len(words) > 2 else b""
            with contextlib.suppress(OSError):
                client.sendall(self._answer if asked == PATH else _NOT_FOUND)
                client.shutdown(socket.SHUT_WR)
        self._close(client)

    def _close(self, client: socket.socket) -> None:
        del self._deadlines[client]
        self._selector.unregister(client)
        client.close()


_running: list[_Answering] = []
