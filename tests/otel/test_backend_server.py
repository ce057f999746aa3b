"""One backend server without the pipe: status, warnings, and refused messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from kumadp.host.net.serve import bind_unix
from kumadp.otel.backend_server import BackendServer
from kumadp.otel.backend_spec import DEFAULT_LIMITS, BackendSpec
from kumadp.otel.routes import Collector, Route
from tests.support.collector import client, grpc_collector, message
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.process

BLOCKED = Route(why_not="blocked: RequiredEnvMissing")


class Rig:
    """A server that sends traces and metrics to one collector, and blocks logs."""

    def __init__(self, folder: Path, port: int, name: str = "b") -> None:
        self.path = folder / "kuma-otel-b.sock"
        self.warnings: list[tuple[str, str]] = []
        route = Route(Collector("grpc", f"127.0.0.1:{port}"))
        spec = BackendSpec(name, self.path, {"traces": route, "logs": BLOCKED, "metrics": route})
        self.server = BackendServer(spec, bind_unix(self.path), self._set_warning, DEFAULT_LIMITS)

    def _set_warning(self, label: str, text: str) -> None:
        self.warnings.append((label, text))

    async def send(self, signal: str) -> grpc.StatusCode:
        """Send a message; return its status."""

        def call() -> grpc.StatusCode:
            with client(self.path) as stubs:
                try:
                    stubs[signal](message(signal), timeout=20)
                except grpc.RpcError as error:
                    code: grpc.StatusCode = error.code()
                    return code
            return grpc.StatusCode.OK

        return await asyncio.to_thread(call)

    def signals(self) -> dict[str, Any]:
        signals: Any = self.server.status()["signals"]
        return dict(signals)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path, free_port())
    await rig.server.start()
    yield rig
    await rig.server.close()


async def test_status_and_warning_of_an_unreachable_collector(rig: Rig) -> None:
    assert await rig.send("traces") is grpc.StatusCode.UNAVAILABLE
    assert await rig.send("metrics") is grpc.StatusCode.UNAVAILABLE
    status = rig.signals()["traces"]
    assert (status["sent"], status["failed"], status["refused"], status["why_not"]) == (0, 1, 0, "")
    assert status["last_failure"] == "the collector is unreachable: Connection refused"
    assert status["last_failure_at"] is not None
    failure = "the collector is unreachable: Connection refused"
    assert rig.warnings == [("b", f"traces: {failure}"), ("b", f"traces: {failure}; metrics: {failure}")]


async def test_a_blocked_signal_is_refused_without_a_warning(rig: Rig) -> None:
    assert await rig.send("logs") is grpc.StatusCode.FAILED_PRECONDITION
    status = rig.signals()["logs"]
    assert (status["to"], status["why_not"], status["refused"]) == ("", "blocked: RequiredEnvMissing", 1)
    assert rig.warnings == []


async def test_the_label_of_a_backend_without_a_name_is_its_socket(tmp_path: Path) -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        rig = Rig(tmp_path, port, name="")
        await rig.server.start()
        assert await rig.send("traces") is grpc.StatusCode.OK
        await rig.server.close()
    assert len(collector.exports) == 1
    assert rig.warnings == [("kuma-otel-b.sock", "")]
    assert rig.signals()["traces"]["to"] == f"127.0.0.1:{port} (grpc)"
    assert not rig.path.exists()
