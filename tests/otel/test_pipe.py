"""The pipe between clients and services of the official protocol."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import stat
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from kumadp.errors import WorkDirError
from kumadp.host.log.secrets import register
from kumadp.otel.backend_spec import BackendSpec, PipeLimits
from kumadp.otel.pipe import Pipe
from kumadp.otel.routes import Collector, Route
from tests.support.collector import ANSWERS, client, grpc_collector, http_collector, message
from tests.support.pki import issue, server_context
from tests.support.poll import poll_async
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.process

SIGNALS = ("traces", "logs", "metrics")


class Rig:
    """A pipe that runs; ``warnings`` by backend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "kuma-otel-b.sock"
        self.warnings: dict[str, str] = {}
        self.pipe = Pipe(folder, self.warnings.__setitem__)

    async def serve(self, route: Route, **others: Route) -> None:
        routes = {signal: others.get(signal, route) for signal in SIGNALS}
        await self.pipe.apply([BackendSpec("b", self.socket, routes)])

    async def send(self, signal: str = "traces", size: int = 10, **options: Any) -> Any:
        """Send a message; return the response. Raises grpc.RpcError."""

        def call() -> Any:
            with client(self.socket) as stubs:
                return stubs[signal](message(signal, size), timeout=20, **options)

        return await asyncio.to_thread(call)

    async def send_rejected(self, signal: str = "traces", **options: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as error:
            await self.send(signal, **options)
        return error.value.code(), error.value.details()

    def signal_status(self, signal: str = "traces") -> dict[str, Any]:
        pipe_status: Any = self.pipe.status()
        status: dict[str, Any] = pipe_status[self.socket.name]["signals"][signal]
        return status


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    task = asyncio.create_task(rig.pipe.run(lambda: None))
    yield rig
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def wait_until(probe: Callable[[], Any], what: str) -> None:
    async def check() -> Any:
        return probe()

    await poll_async(check, what=what)


def grpc_route(port: int, **options: Any) -> Route:
    return Route(Collector("grpc", f"127.0.0.1:{port}"), **options)


def http_route(port: int, **options: Any) -> Route:
    return Route(Collector("http/protobuf", f"127.0.0.1:{port}"), **options)


@pytest.mark.parametrize("gzip", [False, True])
async def test_every_signal_is_forwarded_unchanged_with_headers(rig: Rig, gzip: bool) -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        await rig.serve(grpc_route(port, headers={"Api-Key": "k"}, gzip=gzip))
        for signal in SIGNALS:
            answer = await rig.send(signal, 100_000)
            assert answer.partial_success.error_message == "taken"
            (export,) = collector.of(signal)
            assert export.message == message(signal, 100_000)
            assert export.headers["api-key"] == "k"
            assert (rig.signal_status(signal)["sent"], rig.signal_status(signal)["failed"]) == (1, 0)
    assert not any(rig.warnings.values())


async def test_a_client_may_compress(rig: Rig) -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        await rig.serve(grpc_route(port))
        await rig.send(size=100_000, compression=grpc.Compression.Gzip)
        assert collector.exports[0].message == message("traces", 100_000)


async def test_the_socket_is_private_and_replaces_a_stale_one(rig: Rig) -> None:
    rig.socket.touch()
    with grpc_collector("127.0.0.1:0") as (_, port):
        await rig.serve(grpc_route(port))
        assert stat.S_IMODE(rig.socket.stat().st_mode) == 0o600
        await rig.send()


@pytest.mark.parametrize("gzip", [False, True])
async def test_http_posts_protobuf_to_the_path(rig: Rig, gzip: bool) -> None:
    with http_collector() as (collector, port):
        await rig.serve(http_route(port, path="/in/v1/logs", headers={"x-key": "k"}, gzip=gzip))
        assert await rig.send("logs") == ANSWERS["logs"]()
        (export,) = collector.exports
        assert export.message == message("logs")
        expected = {":path": "/in/v1/logs", "x-key": "k", "content-type": "application/x-protobuf"}
        assert expected.items() <= export.headers.items()
        assert (export.headers.get("content-encoding") == "gzip") is gzip


@pytest.mark.parametrize(("status", "code"), [(400, grpc.StatusCode.UNKNOWN), (503, grpc.StatusCode.UNAVAILABLE)])
async def test_1024_bytes_of_an_http_error_are_quoted(rig: Rig, status: int, code: grpc.StatusCode) -> None:
    with http_collector() as (collector, port):
        collector.refuses = (status, "no " + "x" * 5000)
        await rig.serve(http_route(port, path="/v1/traces"))
        actual, details = await rig.send_rejected()
        assert actual is code
        assert f"status {status}: no x" in details
        assert details.count("x") == 1024 - len("no ")
        assert str(status) in rig.warnings["b"]
        collector.refuses = None
        await rig.send()
        assert rig.warnings["b"] == ""


async def test_a_rejection_reaches_the_sender_without_secrets(rig: Rig) -> None:
    register("very-secret-key")
    with grpc_collector("127.0.0.1:0") as (collector, port):
        collector.refuses = (grpc.StatusCode.UNAUTHENTICATED, "no key is very-secret-key")
        await rig.serve(grpc_route(port))
        code, details = await rig.send_rejected()
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "no key is ***" in details
        assert "very-secret" not in rig.warnings["b"] + str(rig.pipe.status())


async def test_a_blocked_signal_is_a_failed_precondition(rig: Rig) -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        await rig.serve(grpc_route(port), logs=Route(why_not="blocked: RequiredEnvMissing"))
        code, details = await rig.send_rejected("logs")
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "logs are not sent: blocked: RequiredEnvMissing" in details
        await rig.send("traces")
        assert [export.signal for export in collector.exports] == ["traces"]
        status = rig.signal_status("logs")
        assert (status["to"], status["why_not"], status["refused"]) == ("", "blocked: RequiredEnvMissing", 1)


@pytest.mark.parametrize("route_to", [grpc_route, http_route])
async def test_an_unreachable_collector_is_a_warning_until_it_is_back(rig: Rig, route_to: Any) -> None:
    port = free_port()
    await rig.serve(route_to(port, path="/v1/traces"))
    code, details = await rig.send_rejected()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "unreachable: Connection refused" in details
    assert "Connection refused" in rig.warnings["b"]
    if route_to is grpc_route:
        for _ in range(2):
            # The collector was restarted: the pipe reconnects.
            with grpc_collector(f"127.0.0.1:{port}"):
                await rig.send()
            assert rig.warnings["b"] == ""


@pytest.mark.parametrize("route_to", [grpc_route, http_route])
async def test_a_slow_collector_times_out_and_delays_no_other(rig: Rig, route_to: Any) -> None:
    opened = grpc_collector("127.0.0.1:0") if route_to is grpc_route else http_collector()
    with opened as (slow, port), grpc_collector("127.0.0.1:0") as (quick, other):
        slow.held = threading.Event()
        await rig.serve(route_to(port, path="/v1/traces", timeout=0.3), logs=grpc_route(other))
        sending = asyncio.create_task(rig.send_rejected())
        await wait_until(lambda: slow.requests, "a message at the slow one")
        await rig.send("logs")
        assert len(quick.exports) == 1
        code, details = await sending
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "within 0.3 s" in details
        slow.held.set()


async def test_messages_for_a_slow_collector_are_limited(rig: Rig) -> None:
    rig.pipe._limits = PipeLimits(messages=2)
    with grpc_collector("127.0.0.1:0") as (collector, port):
        collector.held = threading.Event()
        await rig.serve(grpc_route(port))
        sending = [asyncio.create_task(rig.send()) for _ in range(2)]
        await wait_until(lambda: collector.requests == 2, "both messages")
        code, _ = await rig.send_rejected()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert rig.signal_status()["refused"] == 1
        collector.held.set()
        await asyncio.gather(*sending)
        await rig.send()


@pytest.mark.parametrize("packed", [False, True])
async def test_a_message_that_is_too_large_is_rejected(rig: Rig, packed: bool) -> None:
    rig.pipe._limits = PipeLimits(message_size=100_000)
    how = grpc.Compression.Gzip if packed else grpc.Compression.NoCompression
    with grpc_collector("127.0.0.1:0") as (collector, port):
        await rig.serve(grpc_route(port))
        code, details = await rig.send_rejected(size=200_000, compression=how)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "too large" in details
        await rig.send(size=50_000, compression=how)
        assert len(collector.exports) == 1


async def test_messages_under_way_arrive_although_the_backend_is_removed(rig: Rig) -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        collector.held = threading.Event()
        await rig.serve(grpc_route(port))
        sending = asyncio.create_task(rig.send())
        await wait_until(lambda: collector.requests, "the message")
        removing = asyncio.create_task(rig.pipe.apply([]))
        await wait_until(lambda: not rig.socket.exists(), "the removal of the socket")
        collector.held.set()
        await sending
        await removing
        assert rig.pipe.status() == {}


async def test_only_a_backend_that_changes_is_restarted(rig: Rig) -> None:
    with grpc_collector("127.0.0.1:0") as (first, first_port), grpc_collector("127.0.0.1:0") as (second, second_port):
        await rig.serve(grpc_route(first_port))
        inode = rig.socket.stat().st_ino
        await rig.serve(grpc_route(first_port))
        assert rig.socket.stat().st_ino == inode
        await rig.send()
        await rig.serve(grpc_route(second_port))
        await rig.send()
        assert (len(first.exports), len(second.exports)) == (1, 1)


async def test_a_socket_in_another_folder_is_rejected_and_the_others_are_served(rig: Rig, tmp_path: Path) -> None:
    precious = tmp_path / "elsewhere" / "kuma-otel-c.sock"
    precious.parent.mkdir()
    precious.write_text("mine")
    with grpc_collector("127.0.0.1:0") as (_, port):
        routes = {signal: grpc_route(port) for signal in SIGNALS}
        with pytest.raises(WorkDirError, match="is not in"):
            await rig.pipe.apply([BackendSpec("c", precious, routes), BackendSpec("b", rig.socket, routes)])
        await rig.send()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls_with_a_ca_and_a_certificate_from_files(rig: Rig, tmp_path: Path, mutual: bool) -> None:
    ca = trustme.CA()
    for name, certificate in (("server", ca.issue_cert("127.0.0.1")), ("client", ca.issue_cert("client.test"))):
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair = ((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())
    credentials = grpc.ssl_server_credentials([pair], ca.cert_pem.bytes(), require_client_auth=mutual)
    names = [str(tmp_path / name) for name in ("ca.pem", "client.pem", "client.key")]
    with grpc_collector("127.0.0.1:0", credentials=credentials) as (collector, port):
        await rig.serve(Route(Collector("grpc", f"127.0.0.1:{port}", True, *names)))
        await rig.send()
        assert len(collector.exports) == 1
        await rig.serve(Route(Collector("grpc", f"127.0.0.1:{port}", True)))
        code, details = await rig.send_rejected()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "certificate is not accepted" in details
        await rig.serve(Route(Collector("grpc", f"127.0.0.1:{port}", True, "/nowhere/ca.pem")))
        code, details = await rig.send_rejected()
        assert "/nowhere/ca.pem" in details


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_an_intermediate_among_other_text_is_a_valid_ca(rig: Rig, tmp_path: Path, protocol: str) -> None:
    root = issue("root", bare=True)
    intermediate = issue("intermediate", root, bare=True)
    leaf = issue("collector", intermediate, ca=None, bare=True, names=("127.0.0.1",))
    file = tmp_path / "ca.pem"
    file.write_bytes(leaf.key_pem + b"M\xfcller\n" + intermediate.pem)
    async with contextlib.AsyncExitStack() as stack:
        if protocol == "grpc":
            credentials = grpc.ssl_server_credentials([(leaf.key_pem, leaf.pem)])
            collector, port = stack.enter_context(grpc_collector("127.0.0.1:0", credentials=credentials))
        else:
            collector, port = stack.enter_context(http_collector(server_context(tmp_path, leaf)))
        path = "/v1/traces" if protocol != "grpc" else ""
        await rig.serve(Route(Collector(protocol, f"127.0.0.1:{port}", True, str(file)), path))
        await rig.send()
        assert len(collector.exports) == 1
        file.write_bytes(leaf.key_pem)
        await rig.serve(Route(Collector(protocol, f"127.0.0.1:{port}", True, str(file), "", "again"), path))
        code, details = await rig.send_rejected()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert f"{file} holds no PEM certificate" in details


async def test_a_client_key_with_a_password_is_an_error_without_a_prompt(rig: Rig, tmp_path: Path) -> None:
    identity = issue("client")
    locked = identity.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    (tmp_path / "client.pem").write_bytes(identity.pem)
    (tmp_path / "client.key").write_bytes(locked)
    names = [str(tmp_path / name) for name in ("client.pem", "client.key")]
    await rig.serve(Route(Collector("grpc", "127.0.0.1:1", True, "", *names)))
    _, details = await rig.send_rejected()
    assert f"the client certificate of {names[0]} and {names[1]} cannot be read" in details


async def test_https_with_a_ca_from_a_file(rig: Rig, tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with http_collector(context) as (collector, port):

        def secured(certificate: str) -> Route:
            return Route(Collector("http/protobuf", f"127.0.0.1:{port}", True, certificate), "/v1/traces")

        await rig.serve(secured(str(tmp_path / "ca.pem")))
        await rig.send()
        assert len(collector.exports) == 1
        await rig.serve(secured(""))
        code, details = await rig.send_rejected()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "certificate" in details


async def test_a_collector_on_a_unix_socket(rig: Rig, tmp_path: Path) -> None:
    with grpc_collector(f"unix:{tmp_path}/c.sock") as (collector, _):
        await rig.serve(Route(Collector("grpc", f"unix://{tmp_path}/c.sock")))
        await rig.send()
        assert len(collector.exports) == 1
