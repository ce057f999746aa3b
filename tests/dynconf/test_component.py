"""Effect of each response (Kuma 2.14's table without its defects); no path waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.dynconf.component import DynamicConfiguration, PollOptions
from kumadp.resources.dynconf_bodies import BODIES, DNS, MESH_METRIC, OTEL, DnsBody, DnsRecord, MeshMetricBody, OtelBody
from tests.support.event_loops import on_both_loops
from tests.support.poll import poll_async
from tests.support.unix_http_server import UnixHttpServer, response, unix_http_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

INTERVAL = 0.02
METRICS = json.dumps({"observability": {"metrics": {"applications": [{"port": 8081, "path": "/metrics"}]}}}).encode()


def names(*hosts: str) -> bytes:
    return json.dumps({"records": [{"name": name, "ips": ["240.0.0.1"]} for name in hosts], "ttl": 30}).encode()


def dns_body(*hosts: str) -> DnsBody:
    return DnsBody(tuple(DnsRecord(name, ("240.0.0.1",)) for name in hosts), 30)


class RecordingHandler:
    """Records the bodies; then blocks if ``blocks``, and raises ``error`` if it is set."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.error: Exception | None = None
        self.blocks = False
        self.cancelled = 0

    async def __call__(self, body: Any) -> None:
        self.received.append(body)
        if self.blocks:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1
        if self.error is not None:
            raise self.error


class Rig:
    """A component with a handler for each path, and its warnings."""

    def __init__(self, socket: Path, options: PollOptions) -> None:
        self.handlers = {path: RecordingHandler() for path in BODIES}
        self.warnings: list[tuple[str, str]] = []
        self.component = DynamicConfiguration(
            socket,
            options,
            self.handlers,
            set_warning=lambda *warning: self.warnings.append(warning),
        )

    def path(self, path: str) -> Mapping[str, Any]:
        paths: Any = json.loads(json.dumps(self.component.status()))["paths"]
        status: Mapping[str, Any] = paths[path]
        return status


@contextlib.asynccontextmanager
async def running_component(path: Path, *, envoy_serves: bool = True, **options: Any) -> AsyncIterator[Rig]:
    """``options`` are those of `PollOptions`."""
    rig = Rig(path, PollOptions(INTERVAL, **options))
    up = asyncio.Event()
    task = asyncio.create_task(rig.component.run(up.set))
    await up.wait()
    rig.component.on_envoy(envoy_serves)
    try:
        yield rig
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object], what: str) -> None:
    async def probe() -> bool:
        return bool(condition())

    await poll_async(probe, what=what)


async def rounds(server: UnixHttpServer, path: str, count: int = 5) -> None:
    """Wait for so many more requests."""
    requests = server.count(path)
    await until(lambda: server.count(path) >= requests + count, f"{count} more requests for {path}")


@on_both_loops
async def test_a_body_is_handled_once_and_again_when_it_changes(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short) as rig:
        handler = rig.handlers[DNS]
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: handler.received == [dns_body("a.mesh")], "the names")
        await rounds(server, DNS)
        assert handler.received == [dns_body("a.mesh")]
        assert server.requests[-1][0] in BODIES
        assert (DNS, "one") in server.requests
        server.put(DNS, names("a.mesh", "b.mesh"), "two")
        await until(lambda: handler.received[1:] == [dns_body("a.mesh", "b.mesh")], "the other names")
        status = rig.path(DNS)
        assert status["etag"] == "two"
        assert status["changes"] == 2
        assert status["body"]["records"][1] == {"name": "b.mesh", "ips": ["240.0.0.1"]}
        assert status["error"] is None
        assert rig.warnings == []
        assert server.connections == len(BODIES)


@on_both_loops
async def test_each_path_has_its_handler(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short) as rig:
        server.put(MESH_METRIC, METRICS, "m")
        server.put(OTEL, b'{"backends":[]}', "o")
        await until(lambda: rig.handlers[MESH_METRIC].received and rig.handlers[OTEL].received, "both bodies")
        assert isinstance(rig.handlers[MESH_METRIC].received[0], MeshMetricBody)
        assert rig.handlers[OTEL].received == [OtelBody(())]
        assert rig.handlers[DNS].received == []


async def test_bodies_without_a_handler_are_in_the_status(short: Path) -> None:
    async with unix_http_server(short) as server:
        component = DynamicConfiguration(short, PollOptions(INTERVAL), set_warning=lambda *_: None)
        task = asyncio.create_task(component.run(lambda: None))
        component.on_envoy(True)
        server.put(DNS, names("a.mesh"), "one")

        def body() -> object:
            paths: Any = component.status()["paths"]
            return paths[DNS]["body"]

        await until(body, "the names")
        del server.responses[DNS]
        await until(lambda: body() is None, "no names")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@on_both_loops
async def test_a_handler_that_blocks_delays_no_other_path_and_is_retried(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short, deadline=0.3) as rig:
        metrics, dns = rig.handlers[MESH_METRIC], rig.handlers[DNS]
        metrics.blocks = True
        server.put(MESH_METRIC, METRICS, "m")
        await until(lambda: metrics.received, "a handler that blocks")
        for count in range(1, 4):
            server.put(DNS, names(*"abc"[:count]), f"v{count}")
            await until(lambda count=count: len(dns.received) == count, "names")  # type: ignore[misc]
        await until(lambda: metrics.cancelled, "its deadline")
        await until(lambda: rig.warnings, "a warning")
        assert rig.warnings[0][0] == MESH_METRIC
        assert "not done within 0.3 s" in rig.warnings[0][1]
        metrics.blocks = False
        await until(lambda: rig.path(MESH_METRIC)["changes"] == 1, "the metrics")
        assert rig.warnings[1:] == [(MESH_METRIC, "")]


@on_both_loops
async def test_a_late_response_delays_no_other_path(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short, deadline=0.2) as rig:
        dns = rig.handlers[DNS]
        server.put(OTEL, b"{}", "o")
        server.held[OTEL] = asyncio.Event()
        await until(lambda: server.count(OTEL), "a request")
        for count in range(1, 4):
            server.put(DNS, names(*"abc"[:count]), f"v{count}")
            await until(lambda count=count: len(dns.received) == count, "names")  # type: ignore[misc]
        await until(lambda: rig.warnings, "a warning")
        assert rig.warnings[0] == (OTEL, "no response within 0.2 s")
        server.held[OTEL].set()
        await until(lambda: rig.handlers[OTEL].received, "collectors")
        await until(lambda: rig.warnings[-1] == (OTEL, ""), "no warning")


async def test_a_handler_that_fails_is_retried_with_one_warning(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short) as rig:
        handler = rig.handlers[DNS]
        handler.error = ValueError("no room")
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: len(handler.received) >= 4, "retries")
        assert rig.warnings == [(DNS, "could not be applied, retrying: ValueError: no room")]
        assert rig.path(DNS)["body"] is None
        handler.error = None
        await until(lambda: rig.path(DNS)["changes"] == 1, "the names")
        assert rig.warnings[1:] == [(DNS, "")]
        count = len(handler.received)
        await rounds(server, DNS)
        assert len(handler.received) == count


async def test_a_timeout_of_the_handler_is_not_the_deadline(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short) as rig:
        rig.handlers[DNS].error = TimeoutError("the resolver")
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: rig.warnings, "a warning")
        assert rig.warnings[0][1].endswith("TimeoutError: the resolver")


@on_both_loops
async def test_an_invalid_body_is_rejected_with_one_warning_that_names_the_field(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short) as rig:
        handler = rig.handlers[DNS]
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: handler.received, "the names")
        server.put(DNS, b'{"records":[{"name":"a.mesh","ips":[4]}]}', "wrong")
        await until(lambda: rig.warnings, "a warning")
        # Envoy does not send it again.
        await until(lambda: (DNS, "wrong") in server.requests, "its etag")
        await rounds(server, DNS)
        assert handler.received == [dns_body("a.mesh")]
        assert len(rig.warnings) == 1
        assert "$.records[0].ips[0]" in rig.warnings[0][1]
        assert "$.records[0].ips[0]" in rig.path(DNS)["error"]
        assert rig.path(DNS)["body"]["records"][0]["ips"] == ["240.0.0.1"]
        # The handler is not called with the body that it has.
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: rig.warnings[1:] == [(DNS, "")], "no warning")
        assert handler.received == [dns_body("a.mesh")]
        server.put(DNS, b"{", "wrong")
        await until(lambda: len(rig.warnings) == 3, "the warning again")
        server.put(DNS, names("b.mesh"), "two")
        await until(lambda: handler.received[1:] == [dns_body("b.mesh")], "the names")
        assert rig.warnings[3:] == [(DNS, "")]


@pytest.mark.parametrize("how", ["404", "refused", "no file"])
@on_both_loops
async def test_a_removal_is_handled_once(short: Path, how: str) -> None:
    async with unix_http_server(short) as server, running_component(short) as rig:
        handler = rig.handlers[MESH_METRIC]
        server.put(MESH_METRIC, METRICS, "m")
        await until(lambda: handler.received, "the metrics")
        if how == "404":
            del server.responses[MESH_METRIC]
        else:
            await server.close()
            if how == "no file":
                short.unlink()  # noqa: ASYNC240
        await until(lambda: len(handler.received) == 2, "their end")
        assert handler.received[1] is None
        status = rig.path(MESH_METRIC)
        assert (status["body"], status["bytes"], status["error"]) == (None, 0, None)
        if how != "404":
            await server.open()
        await rounds(server, MESH_METRIC)
        if how == "404":
            assert len(handler.received) == 2
        server.put(MESH_METRIC, METRICS, "m")
        await until(lambda: handler.received[-1] is not None, "the metrics again")
        assert handler.received.count(None) == 1
        assert rig.warnings == []


async def test_a_body_that_failed_is_removed_too(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short) as rig:
        handler = rig.handlers[DNS]
        handler.error = OSError("half of it")
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: handler.received, "the names")
        del server.responses[DNS]
        await until(lambda: handler.received.count(None) >= 2, "attempts to remove it")
        handler.error = None
        await until(lambda: rig.warnings[-1] == (DNS, ""), "no warning")
        count = len(handler.received)
        await rounds(server, DNS)
        assert len(handler.received) == count


async def test_a_single_poll_without_a_listener_is_not_a_removal(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short) as rig:
        handler = rig.handlers[DNS]
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: handler.received, "the names")
        for _ in range(6):
            held = server.responses.pop(DNS)
            await rounds(server, DNS, 1)
            server.responses[DNS] = held
            await rounds(server, DNS, 2)
        assert handler.received == [dns_body("a.mesh")]


@pytest.mark.parametrize("raw", [response(500, b"no"), response(301, b"", "location: /"), b"nonsense\r\n\r\n"])
async def test_an_unexpected_response_changes_nothing_and_is_a_warning(short: Path, raw: bytes) -> None:
    async with unix_http_server(short) as server, running_component(short) as rig:
        handler = rig.handlers[DNS]
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: handler.received, "the names")
        server.responses[DNS] = raw
        await until(lambda: rig.warnings, "a warning")
        await rounds(server, DNS)
        assert len(rig.warnings) == 1
        assert rig.path(DNS)["failed"] >= 2
        assert rig.path(DNS)["body"] is not None
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: rig.warnings[1:] == [(DNS, "")], "no warning")
        assert handler.received == [dns_body("a.mesh")]


@on_both_loops
async def test_nothing_is_polled_without_an_envoy(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short, envoy_serves=False) as rig:
        server.put(DNS, names("a.mesh"), "one")
        handler = rig.handlers[DNS]
        await asyncio.sleep(5 * INTERVAL)
        assert server.requests == []
        assert server.connections == 0
        rig.component.on_envoy(True)
        await until(lambda: handler.received, "the names")
        assert rig.component.status()["asks"]
        # Envoy dies: the socket fails before kumadp knows, and for any length of time.
        await server.close()
        rig.component.on_envoy(False)
        requests = [rig.path(path)["asked"] for path in BODIES]
        await asyncio.sleep(10 * INTERVAL)
        assert [rig.path(path)["asked"] for path in BODIES] == requests
        assert handler.received == [dns_body("a.mesh")]
        assert rig.path(DNS)["body"] is not None
        await server.open()
        rig.component.on_envoy(True)
        await rounds(server, DNS)
        assert (DNS, "one") in server.requests
        assert handler.received == [dns_body("a.mesh")]
        assert rig.warnings == []


@on_both_loops
async def test_a_request_is_cancelled_without_failure_when_envoy_dies(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short, deadline=0.3) as rig:
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: rig.handlers[DNS].received, "the names")
        server.held[DNS] = asyncio.Event()
        await rounds(server, DNS, 1)
        requests = server.count(DNS)
        rig.component.on_envoy(False)
        await asyncio.sleep(0.4)
        assert server.count(DNS) == requests
        assert rig.path(DNS)["failed"] == 0
        assert rig.path(DNS)["error"] is None
        server.held[DNS].set()
        rig.component.on_envoy(True)
        await rounds(server, DNS)
        assert rig.handlers[DNS].received == [dns_body("a.mesh")]


async def test_poll_now_polls_at_once(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.dynconf.test_component.INTERVAL", 3600.0)
    async with unix_http_server(short) as server, running_component(short) as rig:
        await until(lambda: server.count(DNS) == 1, "the first request")
        server.put(DNS, names("a.mesh"), "one")
        rig.component.poll_now()
        await until(lambda: rig.handlers[DNS].received, "the names")
        # Another Envoy serves.
        server.put(DNS, names("b.mesh"), "two")
        rig.component.on_envoy(True)
        await until(lambda: len(rig.handlers[DNS].received) == 2, "the names")


@on_both_loops
async def test_a_control_plane_without_etags(short: Path) -> None:
    """Kuma 2.8 to 2.10: every path returns the whole body of the metrics, each time."""
    async with unix_http_server(short) as server, running_component(short, long_interval=0.1) as rig:
        for path in BODIES:
            server.put(path, METRICS)
        metrics = rig.handlers[MESH_METRIC]
        await until(lambda: metrics.received, "the metrics")
        await rounds(server, MESH_METRIC)
        assert len(metrics.received) == 1
        assert rig.handlers[DNS].received == rig.handlers[OTEL].received == []
        assert {etag for _, etag in server.requests} == {""}
        assert rig.path(MESH_METRIC)["etag"] is None
        changed = METRICS.replace(b"8081", b"8082")
        for path in BODIES:
            server.put(path, changed)
        await until(lambda: len(metrics.received) == 2, "the change")
        await server.close()
        await until(lambda: metrics.received[2:] == [None], "the removal")
        # The control plane is upgraded.
        await server.open()
        server.put(MESH_METRIC, METRICS, "m")
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: rig.handlers[DNS].received == [dns_body("a.mesh")], "names")
        await until(lambda: (MESH_METRIC, "m") in server.requests, "an etag")
        assert rig.warnings == []


async def test_no_more_often_than_every_ten_seconds_without_etags(short: Path) -> None:
    async with unix_http_server(short) as server, running_component(short):
        for path in BODIES:
            server.put(path, METRICS)
        await until(lambda: {path for path, _ in server.requests} == set(BODIES), "the first requests")
        await asyncio.sleep(10 * INTERVAL)
        assert len(server.requests) <= 2 * len(BODIES)


@on_both_loops
async def test_polls_are_rare_between_announcements(short: Path) -> None:
    async with (
        unix_http_server(short) as server,
        running_component(short, changes_announced=True, short_polls=20) as rig,
    ):
        handler = rig.handlers[DNS]
        server.put(DNS, names("a.mesh"), "one")
        rig.component.poll_now()
        await until(lambda: handler.received, "the names")

        async def calm() -> bool:
            requests = len(server.requests)
            await asyncio.sleep(5 * INTERVAL)
            return len(server.requests) == requests

        await poll_async(calm, what="no more requests")
        server.put(DNS, names("b.mesh"), "two")
        rig.component.poll_now()
        await until(lambda: len(handler.received) == 2, "the other names")
        # Late, as Envoy may be.
        await rounds(server, DNS, 2)
        server.put(DNS, names("c.mesh"), "three")
        await until(lambda: len(handler.received) == 3, "the third ones")
        await poll_async(calm, what="no more requests")
        # A body that could not be applied is retried.
        handler.error = ValueError("no room")
        server.put(DNS, names("d.mesh"), "four")
        rig.component.poll_now()
        await until(lambda: len(handler.received) > 3 + 2 * 20, "retries")
        handler.error = None
        await poll_async(calm, what="no more requests")
        assert rig.path(DNS)["changes"] == 4
        del server.responses[DNS]
        rig.component.poll_now()
        await until(lambda: handler.received[-1] is None, "the removal")
        await poll_async(calm, what="no more requests")


async def test_a_change_without_announcement_is_found_at_the_long_interval(short: Path) -> None:
    async with (
        unix_http_server(short) as server,
        running_component(short, changes_announced=True, long_interval=0.2) as rig,
    ):
        await rounds(server, DNS, PollOptions(INTERVAL).short_polls + 1)
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: rig.handlers[DNS].received, "the names")


@pytest.mark.parametrize("how", ["404", "refused"])
async def test_the_short_interval_returns_when_responses_without_etags_end(short: Path, how: str) -> None:
    async with unix_http_server(short) as server, running_component(short) as rig:
        for path in BODIES:
            server.put(path, METRICS)
        await until(lambda: {path for path, _ in server.requests} == set(BODIES), "the first requests")
        if how == "404":
            server.responses.clear()
        else:
            await server.close()
        rig.component.poll_now()
        await until(lambda: all(rig.path(path)["asked"] > 6 for path in BODIES), "more requests")
        assert rig.handlers[MESH_METRIC].received[1:] == [None]
