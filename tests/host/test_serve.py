"""Serving pauses while one program follows another: whoever comes then waits, and has an answer."""

from __future__ import annotations

import asyncio

from aiohttp import web

from kumadp.host.net.serve import bind_tcp, paused, serve
from tests.support.ports import free_ports

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
