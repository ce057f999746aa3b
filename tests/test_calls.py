"""How many functions of kumadp are called for a probe, a DNS query and a relayed kilobyte: a list that may only shrink.

Time differs by machine, these counts do not. Comprehensions do not count: since Python 3.12 they are no functions. What
another thread does, here the client's and the application's, does not count either.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop

import kumadp
from kumadp.core.component import Stack
from kumadp.dns.message import encode_query
from kumadp.dns.resolver.server import Resolver
from kumadp.dns.resolver.table import Table
from kumadp.probes.application_proxy import ApplicationProbeProxy
from kumadp.relay.messages import encode_response
from tests.relay.harness import CLUSTER, Bench, any_of
from tests.support.daemon import get, workload
from tests.support.event_loops import on_both_loops
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from types import FrameType

CALLS = Path(__file__).with_name("data") / "calls.json"
OURS = str(Path(kumadp.__file__).parent)
INLINE = frozenset({"<listcomp>", "<dictcomp>", "<setcomp>"})
# The first ones are different: something is imported or remembered.
WARM_UP, TIMES = 5, 20
CLUSTERS = 1000


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the calls of kumadp's functions in this thread, by file and name; each resumption is one."""
    calls = Counter[str]()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(OURS) and code.co_name not in INLINE:
            calls[f"{code.co_filename.removeprefix(OURS)}:{code.co_qualname}"] += 1

    former = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(former)


async def fewest(work: Callable[[], Awaitable[object]]) -> Counter[str]:
    """Return the calls of the cheapest of several times: a busy host may cut messages into pieces."""
    runs = []
    for _ in range(WARM_UP + TIMES):
        with counted() as calls:
            await work()
            # What ends after the answer.
            for _ in range(20):
                await asyncio.sleep(0)
        runs.append(calls)
    return min(runs[WARM_UP:], key=lambda calls: calls.total())


def compare(what: str, calls: Counter[str], units: int = 1) -> None:
    """Compare what each of these ``units`` took."""
    version = ".".join(map(str, sys.version_info[:2]))
    lists = json.loads(CALLS.read_text())
    if version not in lists:
        pytest.skip(f"no list for Python {version} in {CALLS.name}")
    listed, now = lists[version][what], round(calls.total() / units)
    most = ", ".join(f"{name} {count}" for name, count in calls.most_common(12))
    assert now <= listed, f"{what}: {now} calls instead of {listed}; most are {most}"
    assert now == listed, f"{what}: {now} calls are enough now; write that into {CALLS.name} in place of {listed}"


def loop_name() -> str:
    return "uvloop" if isinstance(asyncio.get_running_loop(), uvloop.Loop) else "asyncio"


@contextlib.asynccontextmanager
async def probe_proxy() -> AsyncIterator[int]:
    async def host_of(_port: int) -> str | None:
        return "127.0.0.1"

    port, stack = free_port(), Stack(lambda _name, _error: None)
    await stack.enter(ApplicationProbeProxy("127.0.0.1", port, host_of, sourced=False))
    try:
        yield port
    finally:
        await stack.leave()


@on_both_loops
async def test_an_http_probe_through_the_application_probe_proxy() -> None:
    with workload("web") as app:
        async with probe_proxy() as port:

            async def probe() -> None:
                status, _ = await asyncio.to_thread(get, port, f"/{app.port}/")
                assert status == 200

            compare(f"probe, {loop_name()}", await fewest(probe))


@on_both_loops
async def test_a_query_for_a_name_of_the_mesh() -> None:
    port = free_port()
    resolver = Resolver([("127.0.0.1", port)])
    resolver.table = Table([("backend.mesh", ["240.0.0.1"])], suffixes=("mesh",))
    resolver.bind()

    def query() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(30)
            client.connect(("127.0.0.1", port))
            client.send(encode_query("backend.mesh", number=7))
            assert client.recv(512)[:2] == b"\0\7"

    async with resolver:
        compare(f"query, {loop_name()}", await fewest(lambda: asyncio.to_thread(query)))


def test_a_megabyte_of_clusters_of_which_one_has_changed() -> None:
    resources = [any_of(f"cluster-{number}", "x" * 1000) for number in range(CLUSTERS)]
    bench = Bench()
    bench.serving()
    bench.respond(CLUSTER, "v2", *resources)
    bench.ack(1, CLUSTER)
    bench.took_down()
    resources[0] = any_of("cluster-0", "y" * 1000)
    message = encode_response(CLUSTER, "v3", resources, "3")
    with counted() as calls:
        actions = bench.machine.upstream_message(message)
    bench.do(actions)
    assert len(bench.took_down()) == 1
    compare("relayed kilobyte", calls, CLUSTERS)
