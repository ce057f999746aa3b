"""What each answer does (Kuma 2.14's table, its defects mended), and that no path waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from kumadp.dynconf import component
from kumadp.dynconf.component import DynamicConfiguration
from kumadp.resources.dynconf_bodies import BODIES, DNS, MESH_METRIC, OTEL, Dns, MeshMetric, Otel, Record
from tests.support.event_loops import on_both_loops
from tests.support.poll import poll_async
from tests.support.unix_http_server import UnixHttpServer, response, unix_http_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

INTERVAL = 0.02
METRICS = json.dumps({"observability": {"metrics": {"applications": [{"port": 8081, "path": "/metrics"}]}}}).encode()


def names(*found: str) -> bytes:
    return json.dumps({"records": [{"name": name, "ips": ["240.0.0.1"]} for name in found], "ttl": 30}).encode()


def known(*found: str) -> Dns:
    return Dns(tuple(Record(name, ("240.0.0.1",)) for name in found), 30)


class Owner:
    """Keeps what it is given; raises ``fails`` with it, and ``hangs`` before."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.fails: Exception | None = None
        self.hangs = False
        self.cancelled = 0

    async def __call__(self, body: Any) -> None:
        self.given.append(body)
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1
        if self.fails is not None:
            raise self.fails


class Running:
    """A component that runs, with an owner of each path."""

    def __init__(self, path: Path, deadline: float, told: bool) -> None:
        self.owners = {each: Owner() for each in BODIES}
        self.told: list[tuple[str, str]] = []
        self.component = DynamicConfiguration(
            path,
            INTERVAL,
            self.owners,
            concern=lambda *concern: self.told.append(concern),
            told=told,
            deadline=deadline,
        )

    def path(self, path: str) -> Mapping[str, Any]:
        paths: Any = json.loads(json.dumps(self.component.status()))["paths"]
        found: Mapping[str, Any] = paths[path]
        return found


@contextlib.asynccontextmanager
async def running(
    path: Path, *, deadline: float = 5.0, there: bool = True, told: bool = False
) -> AsyncIterator[Running]:
    made = Running(path, deadline, told)
    up = asyncio.Event()
    task = asyncio.create_task(made.component.run(up.set))
    await up.wait()
    made.component.envoy(there)
    try:
        yield made
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(seen: Callable[[], object], what: str) -> None:
    async def probe() -> bool:
        return bool(seen())

    await poll_async(probe, what=what)


async def rounds(server: UnixHttpServer, path: str, count: int = 5) -> None:
    """So many more questions."""
    before = server.count(path)
    await until(lambda: server.count(path) >= before + count, f"{count} more questions for {path}")


@on_both_loops
async def test_a_body_is_handed_over_once_and_again_when_it_changes(short: Path) -> None:
    async with unix_http_server(short) as server, running(short) as at:
        owner = at.owners[DNS]
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: owner.given == [known("a.mesh")], "the names")
        await rounds(server, DNS)
        assert owner.given == [known("a.mesh")]
        assert server.requests[-1][0] in BODIES
        assert (DNS, "one") in server.requests
        server.put(DNS, names("a.mesh", "b.mesh"), "two")
        await until(lambda: owner.given[1:] == [known("a.mesh", "b.mesh")], "the other names")
        found = at.path(DNS)
        assert found["etag"] == "two"
        assert found["changes"] == 2
        assert found["body"]["records"][1] == {"name": "b.mesh", "ips": ["240.0.0.1"]}
        assert found["error"] is None
        assert at.told == []
        assert server.connections == len(BODIES)


@on_both_loops
async def test_each_path_has_its_owner(short: Path) -> None:
    async with unix_http_server(short) as server, running(short) as at:
        server.put(MESH_METRIC, METRICS, "m")
        server.put(OTEL, b'{"backends":[]}', "o")
        await until(lambda: at.owners[MESH_METRIC].given and at.owners[OTEL].given, "metrics and collectors")
        assert isinstance(at.owners[MESH_METRIC].given[0], MeshMetric)
        assert at.owners[OTEL].given == [Otel(())]
        assert at.owners[DNS].given == []


async def test_without_owners_bodies_are_kept(short: Path) -> None:
    async with unix_http_server(short) as server:
        at = DynamicConfiguration(short, INTERVAL, concern=lambda *_: None)
        task = asyncio.create_task(at.run(lambda: None))
        at.envoy(True)
        server.put(DNS, names("a.mesh"), "one")

        def body() -> object:
            paths: Any = at.status()["paths"]
            return paths[DNS]["body"]

        await until(body, "the names")
        del server.responses[DNS]
        await until(lambda: body() is None, "no names")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@on_both_loops
async def test_a_handler_that_hangs_delays_no_other_and_is_tried_again(short: Path) -> None:
    async with unix_http_server(short) as server, running(short, deadline=0.3) as at:
        metrics, dns = at.owners[MESH_METRIC], at.owners[DNS]
        metrics.hangs = True
        server.put(MESH_METRIC, METRICS, "m")
        await until(lambda: metrics.given, "a handler that hangs")
        for count in range(1, 4):
            server.put(DNS, names(*"abc"[:count]), f"v{count}")
            await until(lambda count=count: len(dns.given) == count, "names")  # type: ignore[misc]
        await until(lambda: metrics.cancelled, "its deadline")
        await until(lambda: at.told, "a concern")
        assert at.told[0][0] == MESH_METRIC
        assert "not done within 0.3 s" in at.told[0][1]
        metrics.hangs = False
        await until(lambda: at.path(MESH_METRIC)["changes"] == 1, "the metrics")
        assert at.told[1:] == [(MESH_METRIC, "")]


@on_both_loops
async def test_an_answer_that_hangs_delays_no_other(short: Path) -> None:
    async with unix_http_server(short) as server, running(short, deadline=0.2) as at:
        dns = at.owners[DNS]
        server.put(OTEL, b"{}", "o")
        server.held[OTEL] = asyncio.Event()
        await until(lambda: server.count(OTEL), "a question")
        for count in range(1, 4):
            server.put(DNS, names(*"abc"[:count]), f"v{count}")
            await until(lambda count=count: len(dns.given) == count, "names")  # type: ignore[misc]
        await until(lambda: at.told, "a concern")
        assert at.told[0] == (OTEL, "no answer within 0.2 s")
        server.held[OTEL].set()
        await until(lambda: at.owners[OTEL].given, "collectors")
        await until(lambda: at.told[-1] == (OTEL, ""), "no concern")


async def test_a_handler_that_fails_is_called_again_and_told_of_once(short: Path) -> None:
    async with unix_http_server(short) as server, running(short) as at:
        owner = at.owners[DNS]
        owner.fails = ValueError("no room")
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: len(owner.given) >= 4, "tries")
        assert at.told == [(DNS, "could not be applied, and is tried again: ValueError: no room")]
        assert at.path(DNS)["body"] is None
        owner.fails = None
        await until(lambda: at.path(DNS)["changes"] == 1, "the names")
        assert at.told[1:] == [(DNS, "")]
        count = len(owner.given)
        await rounds(server, DNS)
        assert len(owner.given) == count


async def test_its_own_timeout_is_not_ours(short: Path) -> None:
    async with unix_http_server(short) as server, running(short) as at:
        at.owners[DNS].fails = TimeoutError("the resolver")
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: at.told, "a concern")
        assert at.told[0][1].endswith("TimeoutError: the resolver")


@on_both_loops
async def test_a_wrong_body_is_told_once_with_its_path_and_changes_nothing(short: Path) -> None:
    async with unix_http_server(short) as server, running(short) as at:
        owner = at.owners[DNS]
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: owner.given, "the names")
        server.put(DNS, b'{"records":[{"name":"a.mesh","ips":[4]}]}', "wrong")
        await until(lambda: at.told, "a concern")
        # It is not sent again and again.
        await until(lambda: (DNS, "wrong") in server.requests, "its etag")
        await rounds(server, DNS)
        assert owner.given == [known("a.mesh")]
        assert len(at.told) == 1
        assert "$.records[0].ips[0]" in at.told[0][1]
        assert "$.records[0].ips[0]" in at.path(DNS)["error"]
        assert at.path(DNS)["body"]["records"][0]["ips"] == ["240.0.0.1"]
        # What the owner has already is not given again.
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: at.told[1:] == [(DNS, "")], "no concern")
        assert owner.given == [known("a.mesh")]
        server.put(DNS, b"{", "wrong")
        await until(lambda: len(at.told) == 3, "the concern again")
        server.put(DNS, names("b.mesh"), "two")
        await until(lambda: owner.given[1:] == [known("b.mesh")], "the names")
        assert at.told[3:] == [(DNS, "")]


@pytest.mark.parametrize("how", ["404", "refused", "no file"])
@on_both_loops
async def test_what_was_removed_is_taken_back_once(short: Path, how: str) -> None:
    async with unix_http_server(short) as server, running(short) as at:
        owner = at.owners[MESH_METRIC]
        server.put(MESH_METRIC, METRICS, "m")
        await until(lambda: owner.given, "the metrics")
        if how == "404":
            del server.responses[MESH_METRIC]
        else:
            await server.close()
            if how == "no file":
                short.unlink()  # noqa: ASYNC240
        await until(lambda: len(owner.given) == 2, "their end")
        assert owner.given[1] is None
        found = at.path(MESH_METRIC)
        assert (found["body"], found["bytes"], found["error"]) == (None, 0, None)
        if how != "404":
            await server.open()
        await rounds(server, MESH_METRIC)
        if how == "404":
            assert len(owner.given) == 2
        server.put(MESH_METRIC, METRICS, "m")
        await until(lambda: owner.given[-1] is not None, "the metrics again")
        assert owner.given.count(None) == 1
        assert at.told == []


async def test_what_failed_half_way_is_taken_back_too(short: Path) -> None:
    async with unix_http_server(short) as server, running(short) as at:
        owner = at.owners[DNS]
        owner.fails = OSError("half of it")
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: owner.given, "the names")
        del server.responses[DNS]
        await until(lambda: owner.given.count(None) >= 2, "tries to take it back")
        owner.fails = None
        await until(lambda: at.told[-1] == (DNS, ""), "no concern")
        count = len(owner.given)
        await rounds(server, DNS)
        assert len(owner.given) == count


async def test_one_round_without_a_listener_is_no_removal(short: Path) -> None:
    async with unix_http_server(short) as server, running(short) as at:
        owner = at.owners[DNS]
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: owner.given, "the names")
        for _ in range(6):
            held = server.responses.pop(DNS)
            await rounds(server, DNS, 1)
            server.responses[DNS] = held
            await rounds(server, DNS, 2)
        assert owner.given == [known("a.mesh")]


@pytest.mark.parametrize("raw", [response(500, b"no"), response(301, b"", "location: /"), b"nonsense\r\n\r\n"])
async def test_an_odd_answer_changes_nothing_and_is_told(short: Path, raw: bytes) -> None:
    async with unix_http_server(short) as server, running(short) as at:
        owner = at.owners[DNS]
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: owner.given, "the names")
        server.responses[DNS] = raw
        await until(lambda: at.told, "a concern")
        await rounds(server, DNS)
        assert len(at.told) == 1
        assert at.path(DNS)["failed"] >= 2
        assert at.path(DNS)["body"] is not None
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: at.told[1:] == [(DNS, "")], "no concern")
        assert owner.given == [known("a.mesh")]


@on_both_loops
async def test_nothing_is_asked_while_there_is_no_envoy(short: Path) -> None:
    async with unix_http_server(short) as server, running(short, there=False) as at:
        server.put(DNS, names("a.mesh"), "one")
        owner = at.owners[DNS]
        await asyncio.sleep(5 * INTERVAL)
        assert server.requests == []
        assert server.connections == 0
        at.component.envoy(True)
        await until(lambda: owner.given, "the names")
        assert at.component.status()["asks"]
        # Envoy dies: the socket is dead before that is known, and for however long.
        await server.close()
        at.component.envoy(False)
        asked = [at.path(path)["asked"] for path in BODIES]
        await asyncio.sleep(10 * INTERVAL)
        assert [at.path(path)["asked"] for path in BODIES] == asked
        assert owner.given == [known("a.mesh")]
        assert at.path(DNS)["body"] is not None
        await server.open()
        at.component.envoy(True)
        await rounds(server, DNS)
        assert (DNS, "one") in server.requests
        assert owner.given == [known("a.mesh")]
        assert at.told == []


@on_both_loops
async def test_a_question_under_way_when_envoy_dies_is_given_up_and_says_nothing(short: Path) -> None:
    async with unix_http_server(short) as server, running(short, deadline=0.3) as at:
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: at.owners[DNS].given, "the names")
        server.held[DNS] = asyncio.Event()
        await rounds(server, DNS, 1)
        asked = server.count(DNS)
        at.component.envoy(False)
        await asyncio.sleep(0.4)
        assert server.count(DNS) == asked
        assert at.path(DNS)["failed"] == 0
        assert at.path(DNS)["error"] is None
        server.held[DNS].set()
        at.component.envoy(True)
        await rounds(server, DNS)
        assert at.owners[DNS].given == [known("a.mesh")]


async def test_who_is_woken_asks_at_once(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.dynconf.test_component.INTERVAL", 3600.0)
    async with unix_http_server(short) as server, running(short) as at:
        await until(lambda: server.count(DNS) == 1, "the first question")
        server.put(DNS, names("a.mesh"), "one")
        at.component.wake()
        await until(lambda: at.owners[DNS].given, "the names")
        # Another Envoy has taken over.
        server.put(DNS, names("b.mesh"), "two")
        at.component.envoy(True)
        await until(lambda: len(at.owners[DNS].given) == 2, "the names")


@on_both_loops
async def test_a_control_plane_without_etags(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kuma 2.8 to 2.10: every path is answered with the metrics, and each time with all of it."""
    monkeypatch.setattr(component, "LONG_PAUSE", 0.1)
    async with unix_http_server(short) as server, running(short) as at:
        for path in BODIES:
            server.put(path, METRICS)
        metrics = at.owners[MESH_METRIC]
        await until(lambda: metrics.given, "the metrics")
        await rounds(server, MESH_METRIC)
        assert len(metrics.given) == 1
        assert at.owners[DNS].given == at.owners[OTEL].given == []
        assert {etag for _, etag in server.requests} == {""}
        assert at.path(MESH_METRIC)["etag"] is None
        changed = METRICS.replace(b"8081", b"8082")
        for path in BODIES:
            server.put(path, changed)
        await until(lambda: len(metrics.given) == 2, "the change")
        await server.close()
        await until(lambda: metrics.given[2:] == [None], "the removal")
        # The control plane is upgraded.
        await server.open()
        server.put(MESH_METRIC, METRICS, "m")
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: at.owners[DNS].given == [known("a.mesh")], "names")
        await until(lambda: (MESH_METRIC, "m") in server.requests, "an etag")
        assert at.told == []


async def test_no_more_often_than_every_ten_seconds_without_etags(short: Path) -> None:
    async with unix_http_server(short) as server, running(short):
        for path in BODIES:
            server.put(path, METRICS)
        await until(lambda: {path for path, _ in server.requests} == set(BODIES), "the first questions")
        await asyncio.sleep(10 * INTERVAL)
        assert len(server.requests) <= 2 * len(BODIES)


@on_both_loops
async def test_where_changes_are_told_little_is_asked_in_between(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "ROUNDS_UNTIL_CALM", 20)
    async with unix_http_server(short) as server, running(short, told=True) as at:
        owner = at.owners[DNS]
        server.put(DNS, names("a.mesh"), "one")
        at.component.wake()
        await until(lambda: owner.given, "the names")

        async def calm() -> bool:
            before = len(server.requests)
            await asyncio.sleep(5 * INTERVAL)
            return len(server.requests) == before

        await poll_async(calm, what="no more questions")
        server.put(DNS, names("b.mesh"), "two")
        at.component.wake()
        await until(lambda: len(owner.given) == 2, "the other names")
        # Late, as Envoy may be.
        await rounds(server, DNS, 2)
        server.put(DNS, names("c.mesh"), "three")
        await until(lambda: len(owner.given) == 3, "the third ones")
        await poll_async(calm, what="no more questions")
        # What is not done yet goes on.
        owner.fails = ValueError("no room")
        server.put(DNS, names("d.mesh"), "four")
        at.component.wake()
        await until(lambda: len(owner.given) > 3 + 2 * component.ROUNDS_UNTIL_CALM, "tries")
        owner.fails = None
        await poll_async(calm, what="no more questions")
        assert at.path(DNS)["changes"] == 4
        del server.responses[DNS]
        at.component.wake()
        await until(lambda: owner.given[-1] is None, "the removal")
        await poll_async(calm, what="no more questions")


async def test_a_change_that_was_not_told_is_seen_in_the_end(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "LONG_PAUSE", 0.2)
    async with unix_http_server(short) as server, running(short, told=True) as at:
        await rounds(server, DNS, component.ROUNDS_UNTIL_CALM + 1)
        server.put(DNS, names("a.mesh"), "one")
        await until(lambda: at.owners[DNS].given, "the names")


@pytest.mark.parametrize("gone", ["404", "refused"])
async def test_who_stops_to_answer_without_etags_is_asked_as_others(short: Path, gone: str) -> None:
    async with unix_http_server(short) as server, running(short) as at:
        for path in BODIES:
            server.put(path, METRICS)
        await until(lambda: {path for path, _ in server.requests} == set(BODIES), "the first questions")
        if gone == "404":
            server.responses.clear()
        else:
            await server.close()
        at.component.wake()
        await until(lambda: all(at.path(path)["asked"] > 6 for path in BODIES), "more questions")
        assert at.owners[MESH_METRIC].given[1:] == [None]
