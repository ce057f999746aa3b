"""A small program that re-executes itself on SIGUSR1: ``python -m tests.support.reexec_program FOLDER LOOP``.

It listens on TCP (HTTP), UDP (an echo) and a Unix socket, has one child whose output is logged to FOLDER/log, counts
SIGUSR2, and reports all of that over HTTP. ``FOLDER/plan.json`` names the ports and the child; a file ``refuse`` in
FOLDER makes the exec itself fail.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kumadp.errors import HandoverFailed
from kumadp.host.log.output import setup_logging
from kumadp.host.net.serve import bind_tcp, bind_udp, bind_unix, paused, serve
from kumadp.host.reexec import handover
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.work_dir import HandedWorkDir, open_work_dir
from kumadp.process.child import Child, Command, HandedChild

if TYPE_CHECKING:
    from aiohttp import web

HANDED = handover.receive(os.environ)


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


class Program:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan = json.loads((folder / "plan.json").read_text())
        self.ended = ""
        self.failed = ""
        self.usr2 = 0
        self.secret = os.environ.pop("SECRET", "")
        self.again = asyncio.Event()

    async def main(self) -> None:
        await handover.block_signals_in_threads()
        plan = self.plan
        sections = HANDED.sections if HANDED is not None else {}
        if sections:
            self.usr2, self.secret, self.ended = msgspec.msgpack.decode(sections["own"])
        work = sections.get("work")
        handed = msgspec.msgpack.decode(work, type=HandedWorkDir) if work else None
        self.work = open_work_dir("web", "", "", "", {"RUNTIME_DIRECTORY": str(FOLDER / "run")}, handed)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.again.set)
        loop.add_signal_handler(signal.SIGUSR2, self.count)
        handover.release_signals()
        http = bind_tcp("127.0.0.1", plan["tcp"], "http")
        udp = bind_udp("127.0.0.1", plan["udp"], "echo")
        unix = bind_unix(self.folder / "s")
        self.unclaimed = inherited.close_unclaimed()
        self.child: Child | None = None
        if sections:
            children = msgspec.msgpack.decode(sections["children"], type=list[HandedChild])
            self.child = Child.from_handed(children[0]) if children else None
        else:
            fifo = self.folder / "child.out" if plan["fate"] == "keep" else None
            argv = ("/bin/sh", "-c", plan["child"])
            self.child = await Child.spawn(Command(argv, "child", {"PATH": os.defpath}, plan["fate"], fifo))
        watching = asyncio.create_task(self.watch())
        await loop.create_datagram_endpoint(Echo, sock=udp)
        servers = [asyncio.create_task(serve(self.answer, sock, lambda: None)) for sock in (http, unix)]
        self.tasks = [watching, *servers]
        while True:
            await self.again.wait()
            self.again.clear()
            await self.become_new()

    def count(self) -> None:
        self.usr2 += 1

    async def watch(self) -> None:
        if self.child is not None:
            self.ended = (await self.child.wait()).describe()

    async def answer(self, request: web.BaseRequest) -> web.Response:
        from aiohttp import web

        return web.json_response(
            {
                "pid": os.getpid(),
                "count": HANDED.count if HANDED is not None else 0,
                "child": self.child.pid if self.child is not None else 0,
                "ended": self.ended,
                "tail": self.child.tail(1) if self.child is not None else [],
                "usr2": self.usr2,
                "secret": len(self.secret),
                "failed": self.failed,
                "work": str(self.work.path),
                "unclaimed": self.unclaimed,
                "descriptors": count_descriptors(),
            }
        )

    async def become_new(self) -> None:
        async with paused():
            await handover.hold_signals()
            children = [self.child.handed()] if self.child is not None and not self.child.ended else []
            work = self.work.handed()
            sections = {
                "own": msgspec.msgpack.encode((self.usr2, self.secret, self.ended)),
                "children": msgspec.msgpack.encode(children),
                "work": msgspec.msgpack.encode(work),
            }
            handed = handover.collect(sections, [work.lock, *(child.output for child in children)], HANDED)
            argv = ("/none/python",) if (self.folder / "refuse").exists() else None
            try:
                handover.become(handed, os.environ, LOGS.flush, argv)
            except HandoverFailed as error:
                self.failed = str(error)
                handover.release_signals()


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    LOGS = setup_logging(
        level="info", fmt="text", output_path=str(FOLDER / "log"), max_files=1, max_size_mb=100, max_age_days=1
    )
    if sys.argv[2] == "uvloop":
        import uvloop

        uvloop.run(Program(FOLDER).main())
    else:
        asyncio.run(Program(FOLDER).main())
