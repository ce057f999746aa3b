"""`kumadp demo --check`: runs all commands of the table, and prints `ok` or `failed` for each."""

from __future__ import annotations

import asyncio
import functools
import http.client
import os
import signal
import socket
from typing import TYPE_CHECKING

import click

from kumadp.cli.demo.dns import DnsAnswer, DnsAnswerError, query
from kumadp.cli.demo.stage import HOST
from kumadp.dns.message import NOERROR, NXDOMAIN
from kumadp.errors import KumadpError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from kumadp.cli.demo.stage import DemoPorts, DemoStage

READY_DEADLINE = 60.0
CHECK_DEADLINE = 15.0
STOP_DEADLINE = 20.0
REQUEST_TIMEOUT = 5.0
RETRY_INTERVAL = 0.1

# Linux answers all of 127.0.0.0/8 itself, so an admin bound to every address would answer here too.
OTHER_LOCAL_ADDRESS = "127.0.0.2"

TCP_LISTEN = "LISTEN"


class CheckError(KumadpError):
    """Why a check failed, in one line."""


def http_get(port: int, path: str, host: str = HOST) -> tuple[int, str]:
    """Return status and body of a GET. Blocks. Raises CheckError if there is no answer."""
    connection = http.client.HTTPConnection(host, port, timeout=REQUEST_TIMEOUT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise CheckError(f"no answer from {host}:{port}: {error}") from error
    finally:
        connection.close()


def expect_http(port: int, path: str, status: int, body: str = "") -> None:
    """Raise CheckError unless a GET gives this status and a body that begins with ``body``."""
    actual, text = http_get(port, path)
    if actual != status or not text.startswith(body):
        expected = f"{status} {body!r}" if body else str(status)
        raise CheckError(f"GET {HOST}:{port}{path} returned {actual} {text[:60]!r}, not {expected}")


def expect_admin_on_loopback_only(port: int) -> None:
    """Raise CheckError if the admin's port is held, or answers, on another address than 127.0.0.1."""
    import psutil

    addresses = {
        socket_.laddr.ip
        for socket_ in psutil.net_connections("tcp")
        if socket_.status == TCP_LISTEN and socket_.laddr and socket_.laddr.port == port
    }
    if addresses != {HOST}:
        raise CheckError(f"port {port} is held on {', '.join(sorted(addresses)) or 'no address'}, not only on {HOST}")
    with socket.socket() as attempt:
        attempt.settimeout(REQUEST_TIMEOUT)
        if attempt.connect_ex((OTHER_LOCAL_ADDRESS, port)) == 0:
            raise CheckError(f"{OTHER_LOCAL_ADDRESS}:{port} accepts connections")


def expect_address(port: int, name: str, address: str) -> None:
    """Raise CheckError unless DNS answers with exactly this address."""

    answer = _query_dns(port, name)
    if (answer.code, answer.addresses) != (NOERROR, (address,)):
        raise CheckError(f"{name} resolved to {', '.join(answer.addresses) or 'no address'} (code {answer.code})")


def expect_unknown(port: int, name: str) -> None:
    """Raise CheckError unless DNS answers that there is no such name."""
    answer = _query_dns(port, name)
    if answer.code != NXDOMAIN:
        raise CheckError(f"{name} returned code {answer.code} {answer.addresses}, not {NXDOMAIN} (no such name)")


def _query_dns(port: int, name: str) -> DnsAnswer:
    try:
        return query(port, name)
    except (OSError, DnsAnswerError) as error:
        raise CheckError(f"no answer about {name} from {HOST}:{port}: {error}") from error


def expectations(ports: DemoPorts) -> list[tuple[str, Callable[[], None]]]:
    """Return the checks with their names, in the order of the table; each raises CheckError."""
    return [
        ("workload web", lambda: expect_http(ports.workload, "/", 200, "hello from web")),
        ("workload backend", lambda: expect_http(ports.backend, "/", 200, "hello from backend")),
        ("inbound: Envoy to the workload", lambda: expect_http(ports.inbound, "/", 200, "hello from web")),
        ("outbound: Envoy to backend", lambda: expect_http(ports.outbound, "/", 200, "hello from backend")),
        ("virtual probes", lambda: expect_http(ports.probes, f"/{ports.workload}/healthz", 200, "ok")),
        ("virtual probes: other paths are 404", lambda: expect_http(ports.probes, "/healthz", 404)),
        ("readiness", lambda: expect_http(ports.readiness, "/ready", 200, "READY")),
        ("admin answers on loopback", lambda: expect_http(ports.admin, "/server_info", 200, "{")),
        ("admin on no other address", lambda: expect_admin_on_loopback_only(ports.admin)),
        ("DNS: backend.mesh", lambda: expect_address(ports.dns, "backend.mesh", HOST)),
        ("DNS: a name that is not there", lambda: expect_unknown(ports.dns, "nobody.mesh")),
    ]


async def check(stage: DemoStage) -> bool:
    """Run all checks on a started stage, and print a line for each; return False if one failed."""
    if not await _report("ready", lambda: _wait_ready(stage)):
        return False
    results = [
        await _report(what, functools.partial(_retry, expectation)) for what, expectation in expectations(stage.ports)
    ]
    results.append(await _report("a changed Dataplane is live", lambda: _change_dataplane(stage)))
    results.append(await _report("Envoy killed: probes answer, traffic comes back", lambda: _kill_envoy(stage)))
    results.append(await _report("no part of kumadp failed", lambda: _expect_no_failed_part(stage)))
    results.append(await _report("stopped cleanly by SIGTERM", lambda: _stop(stage)))
    return all(results)


async def _report(what: str, attempt: Callable[[], Awaitable[None]]) -> bool:
    try:
        await attempt()
    except CheckError as why:
        click.echo(f"failed {what}: {why}")
        return False
    click.echo(f"ok {what}")
    return True


async def _retry(expectation: Callable[[], None], deadline: float = CHECK_DEADLINE) -> None:
    end = asyncio.get_running_loop().time() + deadline
    while True:
        try:
            return await asyncio.to_thread(expectation)
        except CheckError:
            if asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(RETRY_INTERVAL)


async def _wait_ready(stage: DemoStage) -> None:
    end = asyncio.get_running_loop().time() + READY_DEADLINE
    while True:
        if stage.daemon is None or stage.daemon.returncode is not None:
            raise CheckError(f"kumadp ended with exit code {stage.daemon and stage.daemon.returncode}")
        status = await stage.query_status()
        if status is not None and status.get("ready"):
            return
        if asyncio.get_running_loop().time() > end:
            reasons = "; ".join((status or {}).get("reasons", ())) or "no status"
            raise CheckError(f"not ready within {READY_DEADLINE:.0f} s: {reasons}")
        await asyncio.sleep(RETRY_INTERVAL)


async def _change_dataplane(stage: DemoStage) -> None:
    """Point the outbound to the other workload by editing a file, as the table proposes, and back again."""
    ports, file = stage.ports, stage.mesh / "backend.yaml"
    original = file.read_text(encoding="utf-8")
    file.write_text(original.replace(f"port: {ports.backend}", f"port: {ports.workload}"), encoding="utf-8")
    try:
        await _retry(lambda: expect_http(ports.outbound, "/", 200, "hello from web"))
    finally:
        file.write_text(original, encoding="utf-8")
    await _retry(lambda: expect_http(ports.outbound, "/", 200, "hello from backend"))


async def _expect_no_failed_part(stage: DemoStage) -> None:
    status = await stage.query_status()
    if status is None:
        raise CheckError("the control socket does not answer")
    if fatal := status.get("fatal"):
        raise CheckError("; ".join(f"{part}: {reason}" for part, reason in fatal.items()))


async def _kill_envoy(stage: DemoStage) -> None:
    import psutil

    first = await _running_envoy(stage)
    if psutil.Process(first).ppid() != (stage.daemon and stage.daemon.pid):
        raise CheckError(f"process {first} is not a child of kumadp")
    os.kill(first, signal.SIGKILL)
    ports = stage.ports
    await asyncio.to_thread(expect_http, ports.probes, f"/{ports.workload}/healthz", 200, "ok")
    await _running_envoy(stage, other_than=first)
    await _retry(lambda: expect_http(ports.inbound, "/", 200, "hello from web"))


async def _running_envoy(stage: DemoStage, other_than: int = 0) -> int:
    end = asyncio.get_running_loop().time() + CHECK_DEADLINE
    while True:
        status = await stage.query_status() or {}
        envoy = status.get("children", {}).get("envoy", {})
        if status.get("ready") and envoy.get("pid") and envoy["pid"] != other_than:
            return int(envoy["pid"])
        if asyncio.get_running_loop().time() > end:
            raise CheckError(f"no Envoy within {CHECK_DEADLINE:.0f} s: {envoy.get('reason') or 'no reason given'}")
        await asyncio.sleep(RETRY_INTERVAL)


async def _stop(stage: DemoStage) -> None:
    stage.terminate()
    assert stage.daemon is not None  # noqa: S101
    try:
        code = await asyncio.wait_for(stage.daemon.wait(), STOP_DEADLINE)
    except TimeoutError:
        raise CheckError(f"still there {STOP_DEADLINE:.0f} s after SIGTERM") from None
    if code:
        raise CheckError(f"exit code {code}")
