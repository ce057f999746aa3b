"""5,000 lines a second to one destination that lives and one that is dead: what arrives, and what it costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.log_sink import Sink
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.process_memory import pss

pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]

RATE = 5000
SECONDS = 10
# An access log line of Kuma's default format has about so many bytes.
LINE = "x" * 300

PROGRAM = """
import asyncio, json, resource, sys
from pathlib import Path
import uvloop
from kumadp.accesslog.component import AccessLogs

async def run():
    logs = AccessLogs(Path(sys.argv[1]), lambda _part, _concern: None, flush=2.0)
    task = asyncio.create_task(logs.run(lambda: print("up", flush=True)))
    lag, loop = 0.0, asyncio.get_running_loop()
    end = loop.run_in_executor(None, sys.stdin.readline)
    while not end.done():
        due = loop.time() + 0.01
        await asyncio.sleep(0.01)
        lag = max(lag, loop.time() - due)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({**logs.status(), "cpu": used.ru_utime + used.ru_stime, "lag": lag}), flush=True)
    task.cancel()
    await asyncio.wait({task})

uvloop.run(run())
"""


def test_one_dead_destination_beside_a_living_one(table: list[tuple[str, str, str]]) -> None:
    dead = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="k") as folder, Sink() as sink:
        path = Path(folder) / "al"
        reader = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert reader.stdin is not None
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline() == "up\n"
            before = pss(reader.pid)
            waited = _write(path, sink.address, dead)
            poll(lambda: len(sink.lines) >= RATE * SECONDS, what="every line")
            held = pss(reader.pid) - before
            print(file=reader.stdin, flush=True)
            figures = json.loads(reader.stdout.readline())
        finally:
            reader.stdin.close()
            reader.wait(20)
            reader.stdout.close()
    numbers = [int(line.split()[0]) for line in sink.lines]
    assert numbers == list(range(RATE * SECONDS))
    refused = figures["destinations"][dead]
    assert refused["dropped"] + refused["waiting"] == RATE * SECONDS
    table.append(
        (f"{RATE} lines/s to each of two, one dead: arrived", f"{len(numbers) / RATE / SECONDS:.0%}", "in order")
    )
    table.append(("CPU a second of it", f"{1000 * figures['cpu'] / SECONDS:.0f} ms", f"{SECONDS} s"))
    table.append(("longest stall of the event loop", f"{1000 * figures['lag']:.1f} ms", ""))
    table.append(("memory added (a full queue of the dead one)", f"{held:.1f} MB", "PSS"))
    table.append(("Envoy's end waited", f"{1000 * waited:.0f} ms", "altogether"))


def _write(path: Path, *addresses: str) -> float:
    """As Envoy does: from a thread that waits where the FIFO is full; how long it did (seconds)."""
    writer = os.open(path, os.O_WRONLY)
    begun, waited = time.monotonic(), 0.0
    each = RATE // 100
    for tick in range(SECONDS * 100):
        lines = b"".join(
            json.dumps({"address": address, "message": f"{tick * each + number} {LINE}\n"}).encode() + b"\n"
            for number in range(each)
            for address in addresses
        )
        before = time.monotonic()
        while lines:
            lines = lines[os.write(writer, lines) :]
        waited += max(0.0, time.monotonic() - before - 0.001)
        time.sleep(max(0.0, begun + (tick + 1) / 100 - time.monotonic()))
    os.close(writer)
    return waited
