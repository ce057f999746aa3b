"""A TCP destination of access logs, in a thread: what it read, and how it behaves."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading


class Sink:
    """Reads lines on a port of loopback. `stop` ends its connections and its port, `start` has the same port again."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.data = bytearray()
        self.connections = 0
        self.reads = True
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def lines(self) -> list[bytes]:
        """Whole lines so far, in order."""
        return bytes(self.data).split(b"\n")[:-1]

    def start(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = self._listening.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._wake.send(b"x")
        self._thread.join()
        self._wake.close()
        self._woken.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            stack.callback(self._listening.close)
            selector.register(self._listening, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        return
                    if key.fileobj is self._listening:
                        connection = self._listening.accept()[0]
                        stack.callback(connection.close)
                        self.connections += 1
                        if self.reads:
                            selector.register(connection, selectors.EVENT_READ)
                        continue
                    assert isinstance(key.fileobj, socket.socket)
                    try:
                        data = key.fileobj.recv(1 << 20)
                    except OSError:
                        data = b""
                    self.data += data
                    if not data:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
