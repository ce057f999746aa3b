"""What an admin's answers mean: whether Envoy serves, why not, and where it listens."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any, cast

import pytest

from kumadp.envoy import server_state
from kumadp.envoy.admin import AdminClient, AdminUnreachable
from kumadp.envoy.server_state import ServerInfo, ServerState

STARTED = {"listener_manager.workers_started": 1, "listener_manager.total_listeners_warming": 0}
UPDATED = STARTED | {"listener_manager.lds.update_success": 2}
INFO = {
    "state": "LIVE",
    "hot_restart_version": "11.104",
    "command_line_options": {"restart_epoch": 1, "concurrency": 2},
}
LISTENERS = {
    "listener_statuses": [
        {"name": "in", "local_address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}}},
        {
            "name": "out",
            "local_address": {"socket_address": {"address": "127.0.0.1", "port_value": 81}},
            "additional_local_addresses": [{"socket_address": {"address": "::1", "port_value": 81}}],
        },
        {"name": "pipe", "local_address": {"pipe": {"path": "/x"}}},
    ]
}


class FakeAdmin:
    """Answers with what it is given; an exception is raised."""

    def __init__(
        self,
        ready: tuple[bool, str] | Exception = (True, "LIVE"),
        stats: dict[str, int] | Exception | None = None,
        **bodies: Any,
    ) -> None:
        self._ready = ready
        self._stats = UPDATED if stats is None else stats
        self.bodies = bodies

    async def ready(self) -> tuple[bool, str]:
        if isinstance(self._ready, Exception):
            raise self._ready
        return self._ready

    async def stats(self, _pattern: str, _timeout: float = 5.0) -> dict[str, int]:
        if isinstance(self._stats, Exception):
            raise self._stats
        return self._stats

    gauges = stats

    async def get(self, path: str, timeout: float = 5.0) -> tuple[int, bytes]:
        del timeout
        body = self.bodies[path.partition("?")[0].strip("/")]
        if isinstance(body, Exception):
            raise body
        return 200, body if isinstance(body, bytes) else json.dumps(body).encode()


def state_of(admin: FakeAdmin) -> tuple[ServerState, list[str]]:
    reasons: list[str] = []
    return ServerState(cast("AdminClient", admin), reasons.append), reasons


@pytest.mark.parametrize("dynamic", [True, False])
async def test_a_live_envoy_with_listeners_serves(*, dynamic: bool) -> None:
    state, reasons = state_of(FakeAdmin())
    assert await state.serves(dynamic=dynamic)
    assert reasons == []


@pytest.mark.parametrize(
    ("admin", "reason"),
    [
        (FakeAdmin(ready=AdminUnreachable("x")), "Envoy's admin does not answer yet"),
        (FakeAdmin(ready=(False, "PRE_INITIALIZING")), "Envoy is PRE_INITIALIZING: it waits for clusters"),
        (FakeAdmin(ready=(False, "INITIALIZING")), "Envoy is INITIALIZING: it waits for listeners and routes"),
        (FakeAdmin(ready=(False, "")), "Envoy is not ready"),
        (FakeAdmin(stats={}), "Envoy's workers have not started"),
        (FakeAdmin(stats=ValueError("no JSON")), "Envoy's admin does not answer yet"),
        (FakeAdmin(stats=STARTED), "no listeners from the control plane yet"),
        (FakeAdmin(stats=UPDATED | {"listener_manager.total_listeners_warming": 3}), "3 listeners are warming"),
    ],
)
async def test_the_reason_why_it_does_not_serve(admin: FakeAdmin, reason: str) -> None:
    state, reasons = state_of(admin)
    assert not await state.serves(dynamic=True)
    assert reasons == [reason]


async def test_a_static_envoy_needs_no_update_of_listeners() -> None:
    state, _ = state_of(FakeAdmin(stats=STARTED))
    assert await state.serves(dynamic=False)


async def test_rejected_listeners_are_named(caplog: pytest.LogCaptureFixture) -> None:
    rejected = STARTED | {"listener_manager.lds.update_rejected": 1}
    dump = {"configs": [{"name": "in", "error_state": {"details": "no port"}}, {"name": "out"}]}
    state, reasons = state_of(FakeAdmin(stats=rejected, config_dump=dump))
    assert not await state.serves(dynamic=True)
    assert reasons == ["Envoy rejected the listeners: in: no port"]
    active = rejected | {"listener_manager.total_listeners_active": 1}
    state, reasons = state_of(FakeAdmin(stats=active, config_dump=AdminUnreachable("x")))
    assert await state.serves(dynamic=True)
    assert reasons == []
    assert "Envoy rejected some listeners: unknown" in caplog.text


async def test_addresses_of_listeners_by_name() -> None:
    state, _ = state_of(FakeAdmin(listeners=LISTENERS))
    assert await state.listener_addresses({"out", "pipe"}) == {("127.0.0.1", 81), ("::1", 81)}
    assert await state.listener_addresses(()) == set()
    assert len(await state.addresses() or ()) == 4


@pytest.mark.parametrize("body", [AdminUnreachable("x"), b"no JSON", {}, [], {"listener_statuses": [{}]}])
async def test_an_unusable_answer_gives_no_result(body: Any) -> None:
    state, _ = state_of(FakeAdmin(listeners=body, server_info=body))
    assert await state.listener_addresses({"in"}) is None
    assert await state.addresses() is None
    assert await state.info() is None
    assert not await state.took_over(1)


async def test_server_info_and_the_end_of_a_hand_over() -> None:
    state, reasons = state_of(FakeAdmin(server_info=INFO))
    assert await state.info() == ServerInfo(1, "LIVE", "11.104", 2)
    assert await state.took_over(1)
    # Until the new epoch has the admin, the old one answers.
    assert not await state.took_over(2)
    assert reasons == []
    state, reasons = state_of(FakeAdmin(server_info=INFO | {"state": "PRE_INITIALIZING"}))
    assert not await state.took_over(1)
    assert reasons == ["the new Envoy is PRE_INITIALIZING: it waits for clusters"]
    state, _ = state_of(FakeAdmin(server_info=INFO, stats=AdminUnreachable("x")))
    assert not await state.took_over(1)


async def test_a_serving_envoy_that_is_too_busy_to_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_state, "_ANSWER_IDLE", 0.3)
    silent = FakeAdmin(server_info=AdminUnreachable("x"))
    state, _ = state_of(silent)
    known = ServerInfo(0, "LIVE", "11.104", 2)
    # What is known, and an Envoy without admin, are not waited for.
    assert await state.renewed(known, os.getpid()) == known
    assert await state.renewed(None, None) is None
    # Neither is one that does not move.
    assert await state.renewed(None, 1 << 22) is None
    working = asyncio.get_running_loop().create_task(state.renewed(None, os.getpid()))
    # Three times as long as one that does not move.
    until = time.process_time() + 1.0
    while time.process_time() < until:
        await asyncio.sleep(0)
    assert not working.done()
    silent.bodies["server_info"] = INFO
    assert await working == ServerInfo(1, "LIVE", "11.104", 2)


async def test_what_an_envoy_that_comes_up_waits_for_is_counted() -> None:
    stats = {"cluster_manager.warming_clusters": 12, "listener_manager.total_listeners_active": 3, "other": 1}
    state, _ = state_of(FakeAdmin(stats=stats))
    assert await state.counts(1.0) == {"clusters warming": 12, "listeners ready": 3}
    state, _ = state_of(FakeAdmin(stats=AdminUnreachable("x")))
    assert await state.counts(1.0) == {}


async def test_settled_waits_for_warming_listeners_at_most_for_the_deadline() -> None:
    state, _ = state_of(FakeAdmin(stats={"listener_manager.total_listeners_warming": 0}))
    await state.settled(10.0)
    state, _ = state_of(FakeAdmin(stats={"listener_manager.total_listeners_warming": 1}))
    await state.settled(0.05)
