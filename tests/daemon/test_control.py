"""Readiness and control socket: real sockets, queried as by a user."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kumadp.core.component import Stack
from kumadp.core.phases import Phase
from kumadp.core.status import Status
from kumadp.daemon import control_client as control
from kumadp.daemon.control import ControlServer
from kumadp.daemon.control_client import query_status
from kumadp.daemon.instances import find_control_sockets
from kumadp.daemon.readiness import ReadinessServer
from kumadp.errors import HandoverFailed, PortsTaken, WorkDirError
from kumadp.host.net import socket_paths
from kumadp.host.net.serve import bind_tcp
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from kumadp.core.component import Component
    from kumadp.core.status import ReadyState


@contextlib.asynccontextmanager
async def served(component: Component) -> AsyncIterator[None]:
    stack = Stack(lambda _name, _error: None)
    await stack.enter(component)
    try:
        yield
    finally:
        await stack.leave()


def readiness(port: int, state: Callable[[], ReadyState]) -> ReadinessServer:
    return ReadinessServer("readiness", bind_tcp("127.0.0.1", port, "KUMA_READINESS_PORT"), state)


def query(port: int, path: str = "/ready") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), {name.lower(): text for name, text in answer.getheaders()}
    finally:
        connection.close()


async def test_readiness_shows_the_state_alone_in_kuma_dp_s_words() -> None:
    port = free_port()
    status = Status("web", "standalone")
    status.set_not_ready("bootstrap", "connection refused 10.0.0.1:5678")
    async with served(readiness(port, lambda: status.ready_state)):
        code, body, headers = await asyncio.to_thread(query, port)
        assert (code, body) == (503, "NOT_READY")
        assert headers["x-powered-by"] == "kuma-dp"
        assert "no-cache" in headers["cache-control"]
        status.move(Phase.READY, "LIVE")
        assert (await asyncio.to_thread(query, port))[:2] == (200, "READY")
        status.move(Phase.DRAINING, "signal")
        assert (await asyncio.to_thread(query, port))[:2] == (503, "TERMINATING")
        assert (await asyncio.to_thread(query, port, "/"))[0] == 404


async def test_a_taken_readiness_port_is_reported_when_it_is_made() -> None:
    port = free_port()
    async with served(readiness(port, lambda: "READY")):
        with pytest.raises(PortsTaken):
            readiness(port, lambda: "READY")


async def test_the_control_socket_shows_everything_to_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "web.control"
    status = Status("web", "standalone")
    status.set_not_ready("envoy", "Envoy is INITIALIZING")
    status.mark_failed("coredns", "restart budget spent")
    async with served(ControlServer(path, status.snapshot)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        reported = await asyncio.to_thread(query_status, path)
        assert reported["reasons"] == ["envoy: Envoy is INITIALIZING"]
        assert reported["fatal"] == {"coredns": "restart budget spent"}
        assert reported["ready"] is False
        assert reported["pid"] == os.getpid()
        json.dumps(reported)
        with pytest.raises(WorkDirError):
            ControlServer(path, status.snapshot)
    assert not path.exists()


async def test_the_control_socket_does_what_is_requested_or_reports_why_not(tmp_path: Path) -> None:
    path = tmp_path / "web.control"
    done: list[str] = []

    async def reload() -> dict[str, object]:
        done.append("reload")
        return {"said": "epoch 1 serves"}

    async def refuse() -> dict[str, object]:
        raise HandoverFailed("the new program does not start: SyntaxError")

    async def fail() -> dict[str, object]:
        raise ValueError("x")

    actions = {"reload": reload, "reexec": refuse, "broken": fail}
    async with served(ControlServer(path, Status("web", "standalone").snapshot, actions)):

        async def post(target: str, method: str = "POST") -> tuple[int, dict[str, object]]:
            return await asyncio.to_thread(control.send_request, path, method, target, 10)

        assert await post("/reload") == (200, {"said": "epoch 1 serves"})
        assert await post("/reexec") == (409, {"why": "the new program does not start: SyntaxError"})
        assert await post("/broken") == (500, {"why": "a bug in kumadp: ValueError: x"})
        assert (await post("/reload", "GET"))[0] == 405
        assert (await post("/status"))[0] == 405
        assert (await post("/other"))[0] == 404
        assert done == ["reload"]


async def test_living_sockets_are_found_and_stale_ones_replaced(tmp_path: Path) -> None:
    environment = {"RUNTIME_DIRECTORY": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "none")}
    path = control_socket_path("web", environment)
    assert path.parent == tmp_path
    path.touch()
    assert path not in find_control_sockets(environment)
    async with served(ControlServer(path, Status("web", "standalone").snapshot)):
        assert path in await asyncio.to_thread(find_control_sockets, environment)


async def test_a_unit_finds_its_own_and_others_find_those_of_all_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_paths, "RUN", tmp_path)
    elsewhere = {"XDG_RUNTIME_DIR": str(tmp_path / "none"), "TMPDIR": str(tmp_path)}
    paths = []
    async with contextlib.AsyncExitStack() as stack:
        for name in ("one", "two"):
            (tmp_path / name).mkdir(mode=0o700)
            unit = {"RUNTIME_DIRECTORY": str(tmp_path / name), **elsewhere}
            paths.append(control_socket_path("web", unit))
            await stack.enter_async_context(served(ControlServer(paths[-1], Status("web", "standalone").snapshot)))
            assert await asyncio.to_thread(find_control_sockets, unit) == paths[-1:]
        foreign = {"RUNTIME_DIRECTORY": str(tmp_path / "none"), **elsewhere}
        for environ in (elsewhere, foreign):
            found = await asyncio.to_thread(find_control_sockets, environ)
            assert [path for path in found if tmp_path in path.parents] == paths


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_is_passed_over(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    private = tmp_path / "run"
    private.mkdir(mode=0o700)
    environment = {"RUNTIME_DIRECTORY": str(folder), "XDG_RUNTIME_DIR": str(private)}
    assert control_socket_path("web", environment).parent == private / "kumadp"


def test_a_folder_whose_name_leaves_no_room_is_passed_over(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir(mode=0o700)
    private = tmp_path / "run"
    private.mkdir(mode=0o700)
    environment = {"RUNTIME_DIRECTORY": str(deep), "XDG_RUNTIME_DIR": str(private)}
    assert control_socket_path("web", environment).parent == private / "kumadp"


def test_a_folder_without_room_for_another_file_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, work = tmp_path / "run", tmp_path / "work"
    for folder in (full, work):
        folder.mkdir(mode=0o700)
    real = os.open

    def without_room(path: str | os.PathLike[str], flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT and full in Path(path).parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", without_room)
    monkeypatch.setattr(socket_paths, "folders", lambda _environ: [full])
    assert control_socket_path("web", {}, work).parent == work
