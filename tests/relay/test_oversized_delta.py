"""Delta responses that are too large: rejected, and brought by a new stream once there is something newer."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.node import encode_node
from kumadp.relay.protocol_choice import ProtocolChoice
from kumadp.relay.relay import Relay, RelayOptions
from kumadp.relay.state_machine import RelayStateMachine
from kumadp.relay.upstream import Dial
from tests.support.poll import poll_async
from tests.support.xds.journal import Kind, What
from tests.support.xds.plane import XdsControlPlane
from tests.support.xds.resources import CLUSTER, static_cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

NODE = "default.web"
LARGEST = 20_000


@contextlib.asynccontextmanager
async def relay_of(plane: XdsControlPlane, folder: Path) -> AsyncIterator[Relay]:
    async def dial() -> Dial:
        context = ssl.create_default_context(cadata=plane.ca)
        return Dial((("localhost", plane.xds_port),), context, "localhost", plane.token())

    options = RelayOptions(choice=ProtocolChoice(XdsProtocol.DELTA), largest=LARGEST)
    machine = RelayStateMachine(encode_node({"id": NODE}))
    relay = Relay(folder / "xds.sock", machine, dial, epoch_of=lambda _pid: 0, options=options)
    task = asyncio.create_task(relay.run(lambda: None))
    try:
        yield relay
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(seen: Callable[[], object], what: str) -> None:
    async def probe() -> object:
        return seen()

    await poll_async(probe, what=what)


def change(plane: XdsControlPlane, name: str, *, size: int = 0) -> None:
    mesh = plane.mesh(NODE)
    mesh.trees[CLUSTER][name] = static_cluster(name + "x" * size, "127.0.0.1", 1)
    mesh.apply()


async def test_what_was_dropped_comes_with_one_new_stream(tmp_path: Path) -> None:
    with XdsControlPlane(version="3.0") as plane:
        plane.faults.linger = plane.faults.nack_delay = 0.0
        change(plane, "large", size=LARGEST)
        async with relay_of(plane, tmp_path) as relay:
            journal = plane.journal
            await until(lambda: journal.requests(CLUSTER, Kind.NACK), "a rejection")
            assert f"at most {LARGEST} are accepted" in journal.requests(CLUSTER, Kind.NACK)[0].error
            assert len(journal.events(What.OPENED)) == 1
            # A set without the large one would be a wrong one: all of it is requested again.
            del plane.mesh(NODE).trees[CLUSTER]["large"]
            change(plane, "small")
            await until(lambda: len(journal.events(What.OPENED)) == 2, "another stream")
            await until(lambda: relay.status()["types"][0]["latest"], "all clusters")  # type: ignore[index]
            assert [entry.stream for entry in journal.responses(CLUSTER)][-1] == 2


async def test_it_is_no_new_stream_with_every_change(tmp_path: Path) -> None:
    with XdsControlPlane(version="3.0") as plane:
        plane.faults.linger = plane.faults.nack_delay = 0.0
        change(plane, "large", size=LARGEST)
        async with relay_of(plane, tmp_path):
            journal = plane.journal
            await until(lambda: journal.requests(CLUSTER, Kind.NACK), "a rejection")
            change(plane, "small")
            await until(lambda: len(journal.events(What.OPENED)) == 2, "another stream")
            for number in range(3):
                # One on the first stream, and one for each response of the second.
                await until(lambda count=number + 2: len(journal.requests(CLUSTER, Kind.NACK)) >= count, "a rejection")  # type: ignore[misc]
                change(plane, f"small-{number}")
            assert len(journal.events(What.OPENED)) == 2
