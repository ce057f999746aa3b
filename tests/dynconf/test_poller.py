"""One poller without its component: what each response means, and when the poller is settled."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.dynconf.poller import POLLS_UNTIL_REMOVED, BodyPoller
from kumadp.resources.dynconf_bodies import DNS, MESH_METRIC, DnsBody, DnsRecord
from tests.support.unix_http_server import UnixHttpServer, response, unix_http_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BODY = json.dumps({"records": [{"name": "a.mesh", "ips": ["240.0.0.1"]}]}).encode()
DECODED = DnsBody((DnsRecord("a.mesh", ("240.0.0.1",)),))


class Rig:
    """A poller of DNS, with its calls of handler, ``set_warning`` and ``on_absent``."""

    def __init__(self, socket: Path, path: str = DNS) -> None:
        self.received: list[Any] = []
        self.warnings: list[str] = []
        self.absent = 0
        self.error: Exception | None = None
        self.poller = BodyPoller(
            path, socket, self._handle, 1.0, set_warning=self.warnings.append, on_absent=self._on_absent
        )

    async def poll(self, times: int = 1) -> None:
        for _ in range(times):
            await self.poller.poll()

    def settled(self) -> bool:
        return self.poller.settled

    async def _handle(self, body: Any) -> None:
        self.received.append(body)
        if self.error is not None:
            raise self.error

    def _on_absent(self) -> None:
        self.absent += 1


@pytest.fixture
async def server(short: Path) -> AsyncIterator[UnixHttpServer]:
    async with unix_http_server(short) as running:
        yield running


@pytest.fixture
async def rig(server: UnixHttpServer, short: Path) -> AsyncIterator[Rig]:
    rig = Rig(short)
    yield rig
    rig.poller.interrupt()


async def test_a_body_is_applied_once(server: UnixHttpServer, rig: Rig) -> None:
    server.put(DNS, BODY, "one")
    await rig.poll(2)
    assert rig.received == [DECODED]
    assert server.requests == [(DNS, ""), (DNS, "one")]
    assert rig.settled()
    assert not rig.poller.without_etags
    status = rig.poller.status()
    assert (status["asked"], status["changes"], status["failed"], status["bytes"]) == (2, 1, 0, len(BODY))


async def test_a_body_without_etag_is_compared_by_its_digest(server: UnixHttpServer, short: Path) -> None:
    rig = Rig(short, MESH_METRIC)
    body = b'{"observability":{"metrics":{}}}'
    server.put(MESH_METRIC, body)
    await rig.poll(3)
    assert len(rig.received) == 1
    assert rig.poller.without_etags
    server.put(MESH_METRIC, body.replace(b"{}", b'{"applications":null}'))
    await rig.poll()
    assert len(rig.received) == 2
    rig.poller.interrupt()


async def test_a_removal_needs_several_polls(server: UnixHttpServer, rig: Rig) -> None:
    server.put(DNS, BODY, "one")
    await rig.poll()
    del server.responses[DNS]
    await rig.poll(POLLS_UNTIL_REMOVED - 1)
    assert rig.received == [DECODED]
    assert not rig.settled()
    await rig.poll()
    assert rig.received == [DECODED, None]
    assert rig.settled()
    assert rig.absent == 0
    await rig.poll()
    assert rig.absent == 1


async def test_an_interruption_resets_the_count_of_missing_bodies(server: UnixHttpServer, rig: Rig) -> None:
    server.put(DNS, BODY, "one")
    await rig.poll()
    del server.responses[DNS]
    for _ in range(3):
        await rig.poll(POLLS_UNTIL_REMOVED - 1)
        rig.poller.interrupt()
    assert rig.received == [DECODED]


async def test_the_second_failed_request_is_a_warning(server: UnixHttpServer, rig: Rig) -> None:
    server.responses[DNS] = response(500, b"no")
    await rig.poll()
    assert rig.warnings == []
    assert rig.poller.status()["error"] == "responded with status 500"
    await rig.poll(2)
    assert rig.warnings == ["responded with status 500"]
    server.put(DNS, BODY, "one")
    await rig.poll()
    assert rig.warnings == ["responded with status 500", ""]


async def test_an_invalid_body_is_not_retried(server: UnixHttpServer, rig: Rig) -> None:
    server.put(DNS, BODY, "one")
    await rig.poll()
    server.put(DNS, b'{"ttl":"many"}', "two")
    await rig.poll(2)
    assert rig.received == [DECODED]
    assert len(rig.warnings) == 1
    assert rig.warnings[0].startswith("rejected, the previous one stays in force: ")
    assert rig.settled()
    assert server.requests[-1] == (DNS, "two")


async def test_a_body_that_cannot_be_applied_is_retried(server: UnixHttpServer, rig: Rig) -> None:
    rig.error = OSError("no room")
    server.put(DNS, BODY, "one")
    await rig.poll(2)
    assert rig.received == [DECODED, DECODED]
    assert rig.warnings == ["could not be applied, retrying: OSError: no room"]
    assert not rig.settled()
    rig.error = None
    await rig.poll()
    assert rig.warnings[1:] == [""]
    assert rig.settled()


async def test_an_interrupted_request_is_not_a_failure(server: UnixHttpServer, rig: Rig) -> None:
    server.put(DNS, BODY, "one")
    server.held[DNS] = asyncio.Event()
    polling = asyncio.create_task(rig.poll())
    async with asyncio.timeout(10):
        while not server.requests:
            await asyncio.sleep(0.01)
        rig.poller.interrupt()
        await polling
    assert (rig.received, rig.warnings, rig.poller.status()["failed"]) == ([], [], 0)
    server.held[DNS].set()


async def test_a_large_body_is_not_in_the_status(server: UnixHttpServer, rig: Rig) -> None:
    records = [{"name": f"n{number}.mesh", "ips": ["240.0.0.1"]} for number in range(5000)]
    server.put(DNS, json.dumps({"records": records}).encode(), "one")
    await rig.poll()
    status = rig.poller.status()
    assert status["body"] is None
    assert status["changes"] == 1
