"""The Envoy of a previous kumadp is drained over the admin address that was recorded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from kumadp.envoy.adopted_envoy import AdoptedEnvoy, EnvoyState
from kumadp.envoy.previous_envoy import PreviousEnvoy

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.process.child import Child


class FakeChild:
    """A process that ends when ``ended`` is set."""

    pid = 7

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def wait(self) -> None:
        await self.ended.wait()


def previous(admin: str, *children: FakeChild, blind: bool = False) -> PreviousEnvoy:
    current, retiring = children or (FakeChild(), None)
    state = EnvoyState(serial=0, epoch=1, blind=blind, current=7, admin=admin)
    return PreviousEnvoy(AdoptedEnvoy(state, cast("Child", current), cast("Child | None", retiring)))


async def test_requests_go_to_the_recorded_address(tmp_path: Path) -> None:
    lines: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).decode().partition("\r\n")[0])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "admin.sock"):
        envoy = previous(f"unix:{tmp_path}/admin.sock")
        await envoy.fail_health_checks()
        await envoy.drain_inbound()
    assert lines == [
        "POST /healthcheck/fail HTTP/1.1",
        "POST /drain_listeners?inboundonly&graceful&skip_exit HTTP/1.1",
    ]


@pytest.mark.parametrize(("admin", "blind"), [("", False), ("no address", False), ("127.0.0.1:1", True)])
async def test_an_unknown_address_or_a_lost_admin_is_an_error(admin: str, *, blind: bool) -> None:
    with pytest.raises(OSError, match=r"POST /healthcheck/fail: the admin address of .* is unknown"):
        await previous(admin, blind=blind).fail_health_checks()


async def test_an_admin_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="POST /drain_listeners"):
        await previous(f"unix:{tmp_path}/none").drain_inbound()


async def test_it_has_ended_once_both_epochs_have() -> None:
    current, retiring = FakeChild(), FakeChild()
    waiting = asyncio.ensure_future(previous("", current, retiring).wait_ended())
    current.ended.set()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    retiring.ended.set()
    await asyncio.wait_for(waiting, 10)
