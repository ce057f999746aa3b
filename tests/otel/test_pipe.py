"""The pipe, with the official protocol's clients in front and its services behind."""

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
from kumadp.otel import served
from kumadp.otel.pipe import Pipe, Wanted
from kumadp.otel.routes import Route, Target
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
    """A pipe that runs; ``concerns`` by backend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "kuma-otel-b.sock"
        self.concerns: dict[str, str] = {}
        self.pipe = Pipe(folder, self.concerns.__setitem__)

    async def serve(self, route: Route, **others: Route) -> None:
        await self.pipe.apply([Wanted("b", self.socket, {signal: others.get(signal, route) for signal in SIGNALS})])

    async def send(self, signal: str = "traces", size: int = 10, **more: Any) -> Any:
        """The answer; raises grpc.RpcError."""

        def call() -> Any:
            with client(self.socket) as stubs:
                return stubs[signal](message(signal, size), timeout=20, **more)

        return await asyncio.to_thread(call)

    async def refused(self, signal: str = "traces", **more: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as error:
            await self.send(signal, **more)
        return error.value.code(), error.value.details()

    def line(self, signal: str = "traces") -> dict[str, Any]:
        status: Any = self.pipe.status()
        found: dict[str, Any] = status[self.socket.name]["signals"][signal]
        return found


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    task = asyncio.create_task(made.pipe.run(lambda: None))
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def seen(probe: Callable[[], Any], what: str) -> None:
    async def ask() -> Any:
        return probe()

    await poll_async(ask, what=what)


def to(port: int, **more: Any) -> Route:
    return Route(Target("grpc", f"127.0.0.1:{port}"), **more)


def http(port: int, **more: Any) -> Route:
    return Route(Target("http/protobuf", f"127.0.0.1:{port}"), **more)


@pytest.mark.parametrize("gzip", [False, True])
async def test_every_signal_goes_on_as_it_is_with_headers(rig: Rig, gzip: bool) -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        await rig.serve(to(port, headers={"Api-Key": "k"}, gzip=gzip))
        for signal in SIGNALS:
            answer = await rig.send(signal, 100_000)
            assert answer.partial_success.error_message == "taken"
            (export,) = collector.of(signal)
            assert export.message == message(signal, 100_000)
            assert export.headers["api-key"] == "k"
            assert (rig.line(signal)["sent"], rig.line(signal)["failed"]) == (1, 0)
    assert not any(rig.concerns.values())


async def test_a_client_that_packs_is_understood(rig: Rig) -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        await rig.serve(to(port))
        await rig.send(size=100_000, compression=grpc.Compression.Gzip)
        assert collector.exports[0].message == message("traces", 100_000)


async def test_the_socket_is_the_owner_s_and_takes_the_place_of_a_stale_one(rig: Rig) -> None:
    rig.socket.touch()
    with grpc_collector("127.0.0.1:0") as (_, port):
        await rig.serve(to(port))
        assert stat.S_IMODE(rig.socket.stat().st_mode) == 0o600
        await rig.send()


@pytest.mark.parametrize("gzip", [False, True])
async def test_http_posts_protobuf_to_the_path(rig: Rig, gzip: bool) -> None:
    with http_collector() as (collector, port):
        await rig.serve(http(port, path="/in/v1/logs", headers={"x-key": "k"}, gzip=gzip))
        assert await rig.send("logs") == ANSWERS["logs"]()
        (export,) = collector.exports
        assert export.message == message("logs")
        wanted = {":path": "/in/v1/logs", "x-key": "k", "content-type": "application/x-protobuf"}
        assert wanted.items() <= export.headers.items()
        assert (export.headers.get("content-encoding") == "gzip") is gzip


@pytest.mark.parametrize(("status", "code"), [(400, grpc.StatusCode.UNKNOWN), (503, grpc.StatusCode.UNAVAILABLE)])
async def test_of_an_http_error_1024_bytes_are_quoted(rig: Rig, status: int, code: grpc.StatusCode) -> None:
    with http_collector() as (collector, port):
        collector.refuses = (status, "no " + "x" * 5000)
        await rig.serve(http(port, path="/v1/traces"))
        found, details = await rig.refused()
        assert found is code
        assert f"status {status}: no x" in details
        assert details.count("x") == 1024 - len("no ")
        assert str(status) in rig.concerns["b"]
        collector.refuses = None
        await rig.send()
        assert rig.concerns["b"] == ""


async def test_what_a_collector_refuses_the_sender_hears_without_secrets(rig: Rig) -> None:
    register("very-secret-key")
    with grpc_collector("127.0.0.1:0") as (collector, port):
        collector.refuses = (grpc.StatusCode.UNAUTHENTICATED, "no key is very-secret-key")
        await rig.serve(to(port))
        code, details = await rig.refused()
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "no key is ***" in details
        assert "very-secret" not in rig.concerns["b"] + str(rig.pipe.status())


async def test_a_signal_that_is_not_sent_is_a_failed_precondition(rig: Rig) -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        await rig.serve(to(port), logs=Route(why_not="blocked: RequiredEnvMissing"))
        code, details = await rig.refused("logs")
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "logs are not sent: blocked: RequiredEnvMissing" in details
        await rig.send("traces")
        assert [one.signal for one in collector.exports] == ["traces"]
        line = rig.line("logs")
        assert (line["to"], line["why_not"], line["refused"]) == ("", "blocked: RequiredEnvMissing", 1)


@pytest.mark.parametrize("way", [to, http])
async def test_a_dead_collector_is_a_concern_until_it_is_there(rig: Rig, way: Any) -> None:
    port = free_port()
    await rig.serve(way(port, path="/v1/traces"))
    code, details = await rig.refused()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "cannot be reached: Connection refused" in details
    assert "Connection refused" in rig.concerns["b"]
    if way is to:
        for _ in range(2):
            # It is started again in between: the connection is made anew.
            with grpc_collector(f"127.0.0.1:{port}"):
                await rig.send()
            assert rig.concerns["b"] == ""


@pytest.mark.parametrize("way", [to, http])
async def test_a_slow_collector_costs_the_timeout_and_delays_no_other(rig: Rig, way: Any) -> None:
    opened = grpc_collector("127.0.0.1:0") if way is to else http_collector()
    with opened as (slow, port), grpc_collector("127.0.0.1:0") as (quick, other):
        slow.held = threading.Event()
        await rig.serve(way(port, path="/v1/traces", timeout=0.3), logs=to(other))
        waiting = asyncio.create_task(rig.refused())
        await seen(lambda: slow.requests, "the slow one asked")
        await rig.send("logs")
        assert len(quick.exports) == 1
        code, details = await waiting
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "within 0.3 s" in details
        slow.held.set()


async def test_a_slow_collector_does_not_gather_messages(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "MOST_AT_ONCE", 2)
    with grpc_collector("127.0.0.1:0") as (collector, port):
        collector.held = threading.Event()
        await rig.serve(to(port))
        waiting = [asyncio.create_task(rig.send()) for _ in range(2)]
        await seen(lambda: collector.requests == 2, "both asked")
        code, _ = await rig.refused()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert rig.line()["refused"] == 1
        collector.held.set()
        await asyncio.gather(*waiting)
        await rig.send()


@pytest.mark.parametrize("packed", [False, True])
async def test_a_message_that_is_too_large_is_refused(rig: Rig, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "LARGEST_MESSAGE", 100_000)
    how = grpc.Compression.Gzip if packed else grpc.Compression.NoCompression
    with grpc_collector("127.0.0.1:0") as (collector, port):
        await rig.serve(to(port))
        code, details = await rig.refused(size=200_000, compression=how)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "too large" in details
        await rig.send(size=50_000, compression=how)
        assert len(collector.exports) == 1


async def test_what_is_on_its_way_arrives_though_the_backend_goes(rig: Rig) -> None:
    with grpc_collector("127.0.0.1:0") as (collector, port):
        collector.held = threading.Event()
        await rig.serve(to(port))
        waiting = asyncio.create_task(rig.send())
        await seen(lambda: collector.requests, "asked")
        leaving = asyncio.create_task(rig.pipe.apply([]))
        await seen(lambda: not rig.socket.exists(), "the socket gone")
        collector.held.set()
        await waiting
        await leaving
        assert rig.pipe.status() == {}


async def test_a_backend_that_stays_is_not_touched_and_one_that_changes_is(rig: Rig) -> None:
    with grpc_collector("127.0.0.1:0") as (first, one), grpc_collector("127.0.0.1:0") as (second, two):
        await rig.serve(to(one))
        inode = rig.socket.stat().st_ino
        await rig.serve(to(one))
        assert rig.socket.stat().st_ino == inode
        await rig.send()
        await rig.serve(to(two))
        await rig.send()
        assert (len(first.exports), len(second.exports)) == (1, 1)


async def test_a_socket_elsewhere_is_refused_and_the_others_are_served(rig: Rig, tmp_path: Path) -> None:
    precious = tmp_path / "elsewhere" / "kuma-otel-c.sock"
    precious.parent.mkdir()
    precious.write_text("mine")
    with grpc_collector("127.0.0.1:0") as (_, port):
        routes = {signal: to(port) for signal in SIGNALS}
        with pytest.raises(WorkDirError, match="is not in"):
            await rig.pipe.apply([Wanted("c", precious, routes), Wanted("b", rig.socket, routes)])
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
        await rig.serve(Route(Target("grpc", f"127.0.0.1:{port}", True, *names)))
        await rig.send()
        assert len(collector.exports) == 1
        await rig.serve(Route(Target("grpc", f"127.0.0.1:{port}", True)))
        code, details = await rig.refused()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "certificate is not accepted" in details
        await rig.serve(Route(Target("grpc", f"127.0.0.1:{port}", True, "/nowhere/ca.pem")))
        code, details = await rig.refused()
        assert "/nowhere/ca.pem" in details


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_an_intermediate_among_other_text_is_enough_of_a_ca(rig: Rig, tmp_path: Path, protocol: str) -> None:
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
        await rig.serve(Route(Target(protocol, f"127.0.0.1:{port}", True, str(file)), path))
        await rig.send()
        assert len(collector.exports) == 1
        file.write_bytes(leaf.key_pem)
        await rig.serve(Route(Target(protocol, f"127.0.0.1:{port}", True, str(file), "", "again"), path))
        code, details = await rig.refused()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert f"{file} holds no PEM certificate" in details


async def test_a_client_key_with_a_password_is_an_error_and_asks_nobody(rig: Rig, tmp_path: Path) -> None:
    identity = issue("client")
    locked = identity.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    (tmp_path / "client.pem").write_bytes(identity.pem)
    (tmp_path / "client.key").write_bytes(locked)
    names = [str(tmp_path / name) for name in ("client.pem", "client.key")]
    await rig.serve(Route(Target("grpc", "127.0.0.1:1", True, "", *names)))
    _, details = await rig.refused()
    assert f"the client certificate of {names[0]} and {names[1]} cannot be read" in details


async def test_https_with_a_ca_from_a_file(rig: Rig, tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    with http_collector(context) as (collector, port):

        def secured(certificate: str) -> Route:
            return Route(Target("http/protobuf", f"127.0.0.1:{port}", True, certificate), "/v1/traces")

        await rig.serve(secured(str(tmp_path / "ca.pem")))
        await rig.send()
        assert len(collector.exports) == 1
        await rig.serve(secured(""))
        code, details = await rig.refused()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "certificate" in details


async def test_a_collector_on_a_unix_socket(rig: Rig, tmp_path: Path) -> None:
    with grpc_collector(f"unix:{tmp_path}/c.sock") as (collector, _):
        await rig.serve(Route(Target("grpc", f"unix://{tmp_path}/c.sock")))
        await rig.send()
        assert len(collector.exports) == 1
