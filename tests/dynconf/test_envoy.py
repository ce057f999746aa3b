"""Polls of a real Envoy, with the routes of control planes with and without etags."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.dynconf.component import DynamicConfiguration, PollOptions
from kumadp.dynconf.socket_client import MAX_BODY, SocketClient
from kumadp.resources.dynconf_bodies import DNS, MESH_METRIC, OTEL, decode
from tests.support.dynconf import DynconfEnvoy, dynconf_envoy, etag_of, with_etags, without
from tests.support.event_loops import on_both_loops
from tests.support.poll import poll_async

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.process

CAPTURES = Path(__file__).resolve().parents[1] / "data/captures/kuma-2.13.5"
METRICS = (CAPTURES / "full/dynconf/meshmetric.json").read_text()
NAMES = (CAPTURES / "tp/dynconf/dns.json").read_text()


def captured_listener(folder: str) -> dict[str, Any]:
    """The listener of dynamic configuration, as Envoy dumped it."""
    dump = json.loads((CAPTURES / folder / "config_dump.json").read_text())
    listeners = [entry for part in dump["configs"] for entry in part.get("dynamic_listeners", ())]
    entry: dict[str, Any] = next(entry for entry in listeners if entry["name"] == "_kuma:dynamicconfig")
    listener: dict[str, Any] = entry["active_state"]["listener"]
    return listener


def captured_routes(folder: str) -> list[dict[str, Any]]:
    manager = captured_listener(folder)["filter_chains"][0]["filters"][0]["typed_config"]
    routes: list[dict[str, Any]] = manager["route_config"]["virtual_hosts"][0]["routes"]
    return routes


def running_component(envoy: DynconfEnvoy) -> tuple[DynamicConfiguration, asyncio.Task[None], list[Any]]:
    """Start a component; return it, its task, and the list of its calls: (path, body or warning)."""
    received: list[Any] = []

    def handler(path: str) -> Callable[[Any], Any]:
        async def record(body: Any) -> None:
            received.append((path, body))

        return record

    component = DynamicConfiguration(
        envoy.socket,
        PollOptions(0.05),
        {path: handler(path) for path in (DNS, MESH_METRIC, OTEL)},
        set_warning=lambda *warning: received.append(warning),
    )
    task = asyncio.create_task(component.run(lambda: None))
    component.on_envoy(True)
    return component, task, received


async def until(condition: Callable[[], object], what: str) -> None:
    async def probe() -> bool:
        return bool(condition())

    await poll_async(probe, what=what)


async def ended(task: asyncio.Task[None]) -> None:
    assert not task.done(), task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_routes_of_the_tests_are_those_of_the_capture() -> None:
    """The routes that the tests serve equal those of a real control plane, in its own field names."""

    def shape(routes: list[dict[str, Any]]) -> list[tuple[str, list[str], int, bool]]:
        return [
            (
                route["match"]["path"],
                [header["name"] for header in route["match"].get("headers", ())],
                (route.get("direct_response") or route.get("directResponse") or {})["status"],
                bool(route.get("response_headers_to_add") or route.get("responseHeadersToAdd")),
            )
            for route in routes
        ]

    assert shape(captured_routes("tp")) == shape(with_etags({DNS: NAMES, MESH_METRIC: METRICS}))


@pytest.mark.parametrize(("folder", "paths"), [("full", {MESH_METRIC}), ("tp", {DNS, MESH_METRIC})])
async def test_the_captured_listener_served_by_envoy(folder: str, paths: set[str]) -> None:
    routes = captured_routes(folder)
    with dynconf_envoy(routes) as envoy:
        component, task, received = running_component(envoy)
        await until(lambda: {path for path, _ in received} == paths, "the bodies")
        for path, body in received:
            source = next(route for route in routes if route["match"] == {"path": path})
            assert body == decode(path, source["direct_response"]["body"]["inline_string"].encode())
            etag = source["response_headers_to_add"][0]["header"]["value"]
            paths_status: Any = component.status()["paths"]
            assert paths_status[path]["etag"] == etag
        await ended(task)


@on_both_loops
async def test_a_known_body_is_not_sent_again() -> None:
    with dynconf_envoy(with_etags({DNS: NAMES, MESH_METRIC: METRICS})) as envoy:
        client = SocketClient(envoy.socket)
        first = await client.get(DNS)
        assert (first.status, first.etag, first.body.decode()) == (200, etag_of(NAMES), NAMES)
        assert (await client.get(DNS, first.etag)).status == 304
        # Envoy compares texts: with quotes it would be another one.
        assert (await client.get(DNS, f'"{first.etag}"')).status == 200
        assert (await client.get(OTEL)).status == 404
        assert envoy.connections() == 1
        client.close()


@on_both_loops
async def test_changed_removed_and_there_again() -> None:
    with dynconf_envoy(with_etags({MESH_METRIC: METRICS})) as envoy:
        _, task, received = running_component(envoy)
        await until(lambda: received == [(MESH_METRIC, decode(MESH_METRIC, METRICS.encode()))], "the metrics")
        changed = METRICS.replace("8081", "8082")
        envoy.serve(with_etags({DNS: NAMES, MESH_METRIC: changed}))
        await until(lambda: len(received) == 3, "both changes")
        assert (MESH_METRIC, decode(MESH_METRIC, changed.encode())) in received
        assert (DNS, decode(DNS, NAMES.encode())) in received
        envoy.serve(with_etags({DNS: NAMES}))
        await until(lambda: received[3:] == [(MESH_METRIC, None)], "the end of the metrics")
        envoy.serve(None)
        await until(lambda: received[4:] == [(DNS, None)], "the end of the names")
        envoy.serve(with_etags({DNS: NAMES}))
        await until(lambda: received[5:] == [(DNS, decode(DNS, NAMES.encode()))], "the names again")
        await ended(task)


async def test_a_change_is_seen_on_a_connection_that_is_kept() -> None:
    with dynconf_envoy(with_etags({DNS: NAMES})) as envoy:
        client = SocketClient(envoy.socket)
        await client.get(DNS)
        for ttl in range(31, 36):
            changed = NAMES.replace("30", str(ttl))
            envoy.serve(with_etags({DNS: changed}))

            async def new(changed: str = changed) -> bool:
                return (await client.get(DNS)).body.decode() == changed

            await poll_async(new, what="the change")
        envoy.serve(None)

        async def gone() -> bool:
            try:
                await client.get(DNS)
            except (ConnectionRefusedError, FileNotFoundError):
                return True
            return False

        await poll_async(gone, what="no listener")
        client.close()


async def test_an_envoy_that_is_replaced_after_it_died() -> None:
    with dynconf_envoy(with_etags({DNS: NAMES})) as envoy:
        component, task, received = running_component(envoy)
        await until(lambda: received, "the names")
        envoy.kill()
        component.on_envoy(False)
        envoy.start()
        component.on_envoy(True)
        await until(lambda: envoy.requests() > 3, "requests to the next one")
        assert received == [(DNS, decode(DNS, NAMES.encode()))]
        await ended(task)


async def test_a_body_of_10_mb() -> None:
    records = [{"name": f"service-{n}.mesh", "ips": [f"240.{n >> 16}.{n >> 8 & 255}.{n & 255}"]} for n in range(90_000)]
    small = json.dumps({"records": records, "ttl": 30, "more": ""})
    body = small[:-2] + "x" * (MAX_BODY - len(small)) + '"}'
    assert len(body) == MAX_BODY
    with dynconf_envoy(with_etags({DNS: body, MESH_METRIC: METRICS})) as envoy:
        component, task, received = running_component(envoy)
        await until(lambda: len(received) == 2, "both bodies")
        names = next(body for path, body in received if path == DNS)
        assert len(names.records) == len(records)
        shown: Any = component.status()["paths"]
        assert (shown[DNS]["bytes"], shown[DNS]["body"]) == (MAX_BODY, None)
        assert shown[MESH_METRIC]["body"] is not None
        await ended(task)


async def test_a_control_plane_without_etags() -> None:
    with dynconf_envoy(without(METRICS)) as envoy:
        component, task, received = running_component(envoy)
        await until(lambda: received, "the metrics")
        await until(lambda: envoy.requests() == 3, "a request for each path")
        assert received == [(MESH_METRIC, decode(MESH_METRIC, METRICS.encode()))]
        envoy.serve(None)
        component.poll_now()
        await until(lambda: received[1:] == [(MESH_METRIC, None)], "their end")
        await ended(task)
