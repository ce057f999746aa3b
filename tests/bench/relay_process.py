"""A process with a relay, or (``--without``) with all but the relay, that answers each line of stdin with figures.

``--without-lag`` leaves the lag of its loop unmeasured, which takes processor time; ``--delta`` has the relay speak
delta xDS to the control plane.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path

import aiohttp.web  # noqa: F401 - what a kumadp holds anyway
import uvloop

from kumadp.process import supervisor as supervise  # noqa: F401 - likewise

PROBE = 0.001


class Lag:
    """The longest time (seconds) for which the loop did nothing else."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(PROBE)
            now = loop.time()
            self.longest = max(self.longest, now - last - PROBE)
            last = now


async def main(path: Path, node: dict[str, object], port: int, trust: str, options: set[str]) -> None:
    """Run until stdin ends."""
    ssl.create_default_context(cadata=trust)
    lag = Lag()
    tasks = [] if "--without-lag" in options else [asyncio.create_task(lag.run())]
    started = time.perf_counter()
    if "--without" not in options:
        from kumadp.relay.dialect import XdsProtocol
        from kumadp.relay.node import encode_node
        from kumadp.relay.protocol_choice import ProtocolChoice
        from kumadp.relay.relay import Relay, RelayOptions
        from kumadp.relay.state_machine import RelayStateMachine
        from kumadp.relay.upstream import Dial

        async def dial() -> Dial:
            context = await asyncio.to_thread(ssl.create_default_context, cadata=trust)
            return Dial((("localhost", port),), context, "localhost", "no.one.knows")

        machine = RelayStateMachine(encode_node(node))
        imported = time.perf_counter() - started
        choice = ProtocolChoice(XdsProtocol.DELTA if "--delta" in options else XdsProtocol.SOTW)
        relay = Relay(path, machine, dial, epoch_of=lambda _pid: 0, options=RelayOptions(choice=choice))
        tasks.append(asyncio.create_task(relay.run(lambda: None)))
    else:
        imported = 0.0
    while await asyncio.to_thread(sys.stdin.readline):
        figures = {"lag": lag.longest, "cpu": time.process_time(), "imported": imported}
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()
        lag.longest = 0.0
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


if __name__ == "__main__":
    socket_path, node_file, xds_port, ca_file, loop_name, *options = sys.argv[1:]
    node = json.loads(Path(node_file).read_text())
    work = main(Path(socket_path), node, int(xds_port), Path(ca_file).read_text(), set(options))
    uvloop.run(work) if loop_name == "uvloop" else asyncio.run(work)
