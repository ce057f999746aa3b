"""Serving pauses while one program follows another: whoever comes then waits, and has an answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from aiohttp import web

from kumadp.host.net import serve as serving_module
from kumadp.host.net.http1.messages import ServedRequest, WholeResponse
from kumadp.host.net.http1.server import ServerOptions
from kumadp.host.net.serve import bind_tcp, paused, serve, serve_http1
from tests.support.event_loops import busy_in_a_read, on_both_loops
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

# More than asyncio's own backlog of 100, and than the 128 that is usual.
MANY = 300
REQUEST = b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def answer(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"READY")


async def test_all_who_come_in_a_pause_are_let_in_and_answered() -> None:
    (port,) = free_ports(1)
    up = asyncio.Event()
    serving = asyncio.create_task(serve(answer, bind_tcp("127.0.0.1", port, "test"), up.set))
    await up.wait()
    try:
        # The second time on the socket that was listened on again after the first.
        for _ in range(2):
            async with asyncio.timeout(60):
                async with paused():
                    # One that finds the backlog full has no connection before the pause is over.
                    came = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(MANY)))
                    for _, writer in came:
                        writer.write(REQUEST)
                for reader, writer in came:
                    assert (await reader.read()).endswith(b"READY")
                    writer.close()
    finally:
        serving.cancel()
        await asyncio.wait({serving})


async def test_a_prompt_server_does_not_wait_for_a_slow_one() -> None:
    prompt, slow = free_ports(2)
    gate, requests = asyncio.Event(), asyncio.Event()

    async def slowly(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/slow":
            requests.set()
            await gate.wait()
        return web.Response(body=b"SLOW")

    up = [asyncio.Event(), asyncio.Event()]
    serving = [
        asyncio.create_task(serve(answer, bind_tcp("127.0.0.1", prompt, "test"), up[0].set, prompt=True)),
        asyncio.create_task(serve(slowly, bind_tcp("127.0.0.1", slow, "test"), up[1].set)),
    ]

    async def query(port: int, request: bytes = REQUEST) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        try:
            return await reader.read()
        finally:
            writer.close()

    async def pause() -> None:
        async with paused():
            pass

    try:
        async with asyncio.timeout(60):
            for event in up:
                await event.wait()
            waiting = asyncio.create_task(query(slow, REQUEST.replace(b"/ready", b"/slow")))
            await requests.wait()
            pausing = asyncio.create_task(pause())
            await asyncio.sleep(0)
            # Also those who come to the slow one after it.
            assert (await query(prompt)).endswith(b"READY")
            assert (await query(slow)).endswith(b"SLOW")
            assert not pausing.done()
            gate.set()
            await pausing
            assert (await waiting).endswith(b"SLOW")
    finally:
        for task in serving:
            task.cancel()
        await asyncio.wait(serving)


@contextlib.asynccontextmanager
async def http1() -> AsyncIterator[int]:
    """A site without aiohttp; yields its port."""

    async def ready(_request: ServedRequest) -> WholeResponse:
        return WholeResponse(200, b"READY")

    sock, up = bind_tcp("127.0.0.1", 0, "test"), asyncio.Event()
    port: int = sock.getsockname()[1]
    serving = asyncio.create_task(serve_http1(ready, sock, up.set, name="test", options=ServerOptions(), prompt=True))
    try:
        async with asyncio.timeout(120):
            await up.wait()
            yield port
    finally:
        serving.cancel()
        await asyncio.wait({serving})


class Clients:
    """Threads that send one request after another, each on its own connection, until `stop`."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self.answered = 0
        self.others: list[bytes] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            with socket.create_connection(("127.0.0.1", self._port), timeout=60) as client:
                client.sendall(REQUEST)
                try:
                    data = b"".join(iter(lambda: client.recv(4096), b""))
                except OSError as error:
                    data = str(error).encode()
            if data.endswith(b"READY"):
                self.answered += 1
            else:
                self.others.append(data)

    def stop(self) -> None:
        """Return once all have their last response."""
        self._ended.set()
        for thread in self._threads:
            thread.join()


@on_both_loops
async def test_no_request_is_lost_in_a_hundred_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    # The clients' threads may be late.
    monkeypatch.setattr(serving_module, "_FIRST_REQUEST", 60.0)
    async with http1() as port:
        clients = Clients(port, 4)
        try:
            for _ in range(100):
                before = clients.answered
                async with paused():
                    await asyncio.sleep(0)
                while clients.answered < before + 8 and not clients.others:
                    await asyncio.sleep(0.001)
        finally:
            await asyncio.to_thread(clients.stop)
        assert clients.others == []


@on_both_loops
async def test_a_request_that_arrives_in_a_pause_while_the_loop_is_busy_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving_module, "_FIRST_REQUEST", 0.1)
    loop = asyncio.get_running_loop()
    async with http1() as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            client.send(REQUEST[:1])
            (site,) = serving_module._sites
            while not site._silent:
                await asyncio.sleep(0)
            pausing = asyncio.create_task(pause_once())
            for _ in range(20):
                await asyncio.sleep(0)
            assert not pausing.done()
            await busy_in_a_read(0.3, lambda: client.send(REQUEST[1:]))
            assert (await loop.sock_recv(client, 4096)).endswith(b"READY")
            await pausing


@on_both_loops
async def test_a_client_that_connects_before_a_pause_and_sends_later_is_answered() -> None:
    loop = asyncio.get_running_loop()
    async with http1() as port:
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        try:
            async with paused():
                for client in clients:
                    client.setblocking(False)
                    client.send(REQUEST)
            for client in clients:
                assert (await loop.sock_recv(client, 4096)).endswith(b"READY")
        finally:
            for client in clients:
                client.close()


async def pause_once() -> None:
    async with paused():
        pass
