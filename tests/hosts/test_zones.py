"""A link-local address with its zone (RFC 4007), at each place where kumadp connects or binds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING

import pytest
import uvloop

from kumadp.accesslog.destination import Destination, DestinationLimits
from kumadp.accesslog.records import split_address
from kumadp.controlplane.bootstrap_http import fetch_bootstrap
from kumadp.controlplane.trust import Trust
from kumadp.dns.message import encode_query, question_of
from kumadp.dns.resolver.exchange import SentQueries, query_tcp, query_udp
from kumadp.dns.resolver.server import Resolver
from kumadp.dns.resolver.table import Table
from kumadp.doctor.control_plane import control_plane
from kumadp.doctor.subject import Subject
from kumadp.errors import ControlPlaneUnavailable, PortsTaken
from kumadp.grpc.client import connect
from kumadp.host.net.ports import BindAddress, check_ports
from kumadp.host.net.serve import bind_tcp
from kumadp.otel.routes import Collector, Route
from kumadp.otel.senders import sender_for
from kumadp.probes.application_client import ApplicationClient
from kumadp.settings.resolve import resolve
from tests.support.collector import http_collector
from tests.support.linklocal import ADDRESS, SCOPED, on_its_own_network
from tests.support.scripted_control_plane import Answer, ScriptedControlPlane, bootstrap_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.process
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def apart(loop: Callable[[], asyncio.AbstractEventLoop], work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(40):
            await work()

    def run() -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(bounded())

    on_its_own_network(run)


@LOOPS
def test_the_control_plane(loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path) -> None:
    async def work() -> None:
        failures: list[ControlPlaneUnavailable] = []
        good = bootstrap_answer({"node": {"id": "default.web"}})
        with ScriptedControlPlane(good, host=SCOPED, names=(ADDRESS,)) as plane:
            ca = plane.write_ca(tmp_path / "ca.crt")
            for shown in (f"{ADDRESS}%25lo", SCOPED):
                flags = {"name": "web", "mesh": "default", "cp_address": f"https://[{shown}]:{plane.port}"}
                settings = resolve("run", {**flags, "ca_cert_file": str(ca)}, {}).settings

                async def request() -> tuple[bytes, Trust]:
                    return b"{}", Trust(plane.ca)

                answer = await fetch_bootstrap(
                    settings.cp_addresses, request, backoff=0.01, max_duration=20, on_failure=failures.append
                )
                assert json.loads(answer.bootstrap)
                assert plane.headers_seen[-1]["host"] == f"[{ADDRESS}]:{plane.port}"
            assert plane.names_seen == [None, None]
            assert failures == []
        with ScriptedControlPlane(Answer(200), host=SCOPED, names=(ADDRESS,)) as plane:
            plane.write_ca(ca)
            flags["cp_address"] = f"https://[{SCOPED}]:{plane.port}"
            settings = resolve("run", {**flags, "ca_cert_file": str(ca)}, {}).settings
            findings = await control_plane(Subject(settings, None, None, None, {}))
            assert [finding.state for finding in findings] == ["ok", "ok"], findings

    apart(loop, work)


@LOOPS
def test_a_grpc_connection_and_a_probe(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        with bound() as server:
            port = server.getsockname()[1]
            wire = await connect((SCOPED, port), authority="web", tls=None, server_name="", ping=None)
            await wire.close()
            assert await ApplicationClient(sourced=False).tcp(SCOPED, port) == 200
        with pytest.raises(OSError, match="no interface 'eth9'"):
            await connect((f"{ADDRESS}%eth9", port), authority="web", tls=None, server_name="", ping=None)

    apart(loop, work)


@LOOPS
def test_an_access_log_and_a_collector(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        with bound() as server:
            port = server.getsockname()[1]
            place = split_address(f"[{SCOPED}]:{port}")
            assert place == (SCOPED, port)
            destination = Destination("a test", *place, DestinationLimits(), lambda _concern: None)
            destination.put(b"line\n")
            connection, _ = await asyncio.get_running_loop().sock_accept(server)
            with connection:
                connection.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(connection, 100) == b"line\n"
            destination.end()
        with http_collector(host=SCOPED) as (collector, port):
            for shown in (SCOPED, f"{ADDRESS}%25lo"):
                target = Collector("http/protobuf", f"[{shown}]:{port}")
                sender = sender_for(target)
                await sender.send("traces", Route(target, "/v1/traces"), b"")
                await sender.close()
            assert [export.headers["host"] for export in collector.exports] == [f"[{ADDRESS}]:{port}"] * 2

    apart(loop, work)


def bound() -> socket.socket:
    return bind_tcp(SCOPED, 0, "a test")


@LOOPS
def test_a_name_server(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    query = encode_query("web")
    question = question_of(query)

    async def work() -> None:
        async with Resolver([(SCOPED, 53)]) as resolver:
            resolver.table = Table([("web", ["192.0.2.1"])])
            for by in (query_udp, query_tcp):
                answer = b""
                while not answer:
                    # What is sent by UDP may be lost; `apart` bounds it all.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(2):
                            answer = await by((SCOPED, 53), query, question, SentQueries())
                assert answer.endswith(bytes((192, 0, 2, 1)))
                with pytest.raises(OSError, match="no interface 'eth9'"):
                    await by((f"{ADDRESS}%eth9", 53), query, question, SentQueries())

    apart(loop, work)


@LOOPS
def test_what_is_bound(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def work() -> None:
        with bound() as server:
            assert server.getsockname()[3] == socket.if_nametoindex("lo")
            port = server.getsockname()[1]
            with pytest.raises(PortsTaken, match="is held by"):
                await check_ports([BindAddress(SCOPED, port, "tcp", "a test", "--somewhere")])
        await check_ports([BindAddress(SCOPED, port, "tcp", "a test", "--somewhere")])
        with pytest.raises(PortsTaken, match="no interface 'eth9'"):
            bind_tcp(f"{ADDRESS}%eth9", 0, "a test")

    apart(loop, work)
