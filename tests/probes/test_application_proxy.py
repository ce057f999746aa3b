"""The application probe proxy in front of real applications: every row of the table, and what a row cannot express."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
from typing import TYPE_CHECKING

import psutil
import pytest

from kumadp import __version__
from kumadp.core.component import Stack
from kumadp.probes.application_proxy import ApplicationProbeProxy
from kumadp.probes.application_slots import MAX_PROBES_PER_APPLICATION
from tests.support.applications import FORBIDDEN, Applications, applications
from tests.support.ports import free_port
from tests.support.probe_table import TABLE, Row, seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def proxy(*, sourced: bool = False, host: str = "127.0.0.1") -> AsyncIterator[int]:
    port = free_port()

    async def host_of(target_port: int) -> str | None:
        return host if target_port != FORBIDDEN else None

    stack = Stack(lambda _name, _error: None)
    await stack.enter(ApplicationProbeProxy("127.0.0.1", port, host_of, sourced=sourced))
    try:
        yield port
    finally:
        await stack.leave()


def assert_seen(seen: dict[str, str]) -> None:
    """Check the request that an application receives for a kubelet's probe with a custom header."""
    assert (seen["method"], seen["path"], seen["query"]) == ("GET", "/a/b%20%21$&c", "x=%2F&y")
    assert (seen["x-own"], seen["accept"], seen["user-agent"]) == ("1", "*/*", "kube-probe/1.31")
    assert not [name for name in seen if name.startswith("x-kuma-probes-")]


LIKE_KUBELET = Row(
    "like kubelet",
    "/{web}/a%2Fb%20!$&c?x=%2F&y",
    200,
    "HEALTHY",
    {"User-Agent": "kube-probe/1.31", "Accept": "*/*", "X-Own": "1", "X-Kuma-Probes-Timeout": "5"},
)


def send_probe(port: int, row: Row, path: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(row.method, path, headers=row.headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), {name.lower(): text for name, text in answer.getheaders()}
    finally:
        connection.close()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_the_table(apps: Applications, row: Row) -> None:
    async with proxy() as port:
        status, body, headers = await asyncio.to_thread(send_probe, port, row, apps.path(row.path))
    assert status == row.code
    if row.word:
        assert body == row.word + "\n"
        assert headers.pop("date")
        assert headers == {
            "content-type": "text/plain; charset=utf-8",
            "x-content-type-options": "nosniff",
            "content-length": str(len(body)),
        }


async def test_the_redirect_to_a_clean_path_equals_that_of_go(apps: Applications) -> None:
    async with proxy() as port:
        path = "//8080/../8081//x/?a=b&c"
        status, body, headers = await asyncio.to_thread(send_probe, port, Row("", "", 0, ""), path)
    assert (status, headers["location"]) == (307, "/8081/x/?a=b&c")
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert body == '<a href="/8081/x/?a=b&amp;c">Temporary Redirect</a>.\n\n'


async def test_the_application_receives_a_get_with_the_headers_of_the_probe(apps: Applications) -> None:
    async with proxy() as port:
        status, _, _ = await asyncio.to_thread(send_probe, port, LIKE_KUBELET, apps.path(LIKE_KUBELET.path))
        assert status == 200
        seen = apps.web.seen[-1]
        assert_seen(seen)
        assert seen["host"] == f"127.0.0.1:{apps.web.port}"
        assert seen["connection"] == "close"
        # kuma-dp adds gzip here, kubelet does not.
        assert "accept-encoding" not in seen or seen["accept-encoding"] == "identity"
        await asyncio.to_thread(send_probe, port, Row("", "", 0, ""), f"/{apps.web.port}/")
        assert apps.web.seen[-1]["user-agent"] == f"kuma-probe/{__version__}"
        await asyncio.to_thread(send_probe, port, Row("", "", 0, ""), f"/grpc/{apps.grpc}")
        assert apps.agents[-1].startswith(f"kube-probe/{__version__}")


async def test_a_host_header_survives_a_relative_redirect_and_not_an_absolute_one(apps: Applications) -> None:
    named = {"X-Kuma-Probes-Host": "web.example"}
    async with proxy() as port:
        for path, host in (("loop/1", "web.example"), ("absolute/x", f"127.0.0.1:{apps.web.port}")):
            await asyncio.to_thread(send_probe, port, Row("", "", 0, "", named), f"/{apps.web.port}/{path}")
            first, last = apps.web.seen[-2:] if path != "loop/1" else (apps.web.seen[-3], apps.web.seen[-1])
            assert (first["host"], last["host"]) == ("web.example", host)


async def test_a_redirect_to_a_forbidden_port_counts_as_success(
    apps: Applications, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxy() as port:
        for target, logged in (("forbidden", "a port that may not be probed"), ("other", "another host")):
            row = Row("", "", 0, "")
            for _ in range(2):
                result = await asyncio.to_thread(send_probe, port, row, f"/{apps.web.port}/to/{target}")
                assert result[:2] == (200, "HEALTHY\n")
            assert len([line for line in caplog.messages if logged in line]) == 1


@pytest.mark.parametrize(("sourced", "source"), [(True, "127.0.0.6"), (False, "127.0.0.1")])
async def test_the_source_address_that_is_not_redirected(apps: Applications, sourced: bool, source: str) -> None:
    async with proxy(sourced=sourced) as port:
        assert (await asyncio.to_thread(send_probe, port, Row("", "", 0, ""), f"/{apps.web.port}/x"))[0] == 200
        assert apps.web.seen[-1]["from"] == source
        with socket.create_server(("127.0.0.1", 0)) as listening:
            path = f"/tcp/{listening.getsockname()[1]}"
            assert (await asyncio.to_thread(send_probe, port, Row("", "", 0, ""), path))[0] == 200
            connection, address = listening.accept()
            connection.close()
            assert address[0] == source
        assert (await asyncio.to_thread(send_probe, port, Row("", "", 0, ""), f"/grpc/{apps.grpc}"))[0] == 200


async def test_over_ipv6_if_the_source_address_is_missing() -> None:
    with applications("::1") as six:
        async with proxy(sourced=True, host="::1") as port:
            for path in ("/{web}/loop/2", "/{web}/absolute/code/200", "/tcp/{silent}"):
                result = await asyncio.to_thread(send_probe, port, Row("", "", 0, ""), six.path(path))
                assert result[:2] == (200, "HEALTHY\n"), path


@pytest.mark.parametrize(("host", "expected"), [("localhost", (200, "HEALTHY\n")), ("", (503, "UNHEALTHY\n"))])
async def test_a_host_name_and_a_host_not_known_yet(apps: Applications, host: str, expected: tuple[int, str]) -> None:
    async with proxy(host=host) as port:
        assert (await asyncio.to_thread(send_probe, port, Row("", "", 0, ""), f"/{apps.web.port}/"))[:2] == expected


async def test_forbidden_ports_are_not_probed(apps: Applications) -> None:
    async with proxy() as port:
        for kind in ("", "tcp/", "grpc/"):
            result = await asyncio.to_thread(send_probe, port, Row("", "", 0, ""), f"/{kind}{FORBIDDEN}")
            assert result[:2] == (503, "UNKNOWN\n")


async def test_a_longer_timeout_is_respected(apps: Applications) -> None:
    async with proxy() as port:
        row = Row("", "", 0, "", seconds("60"))
        slow_probe = asyncio.create_task(asyncio.to_thread(send_probe, port, row, f"/{apps.web.port}/slow"))
        # Longer than the default timeout.
        await asyncio.sleep(1.3)
        assert not slow_probe.done()
        apps.web.slow.set()
        assert (await slow_probe)[0] == 200


async def test_hung_applications_delay_no_others_and_no_descriptor_leaks(apps: Applications) -> None:
    async with proxy() as port:
        row = Row("", "", 0, "", seconds("60"))
        hung = []
        for _ in range(MAX_PROBES_PER_APPLICATION + 5):
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /{apps.silent}/ HTTP/1.1\r\nhost: x\r\nx-kuma-probes-timeout: 60\r\n\r\n".encode())
            hung.append(writer)
        assert (await asyncio.to_thread(send_probe, port, row, f"/{apps.web.port}/"))[0] == 200
        assert (await asyncio.to_thread(send_probe, port, row, f"/grpc/{apps.grpc}"))[0] == 200
        for writer in hung:
            writer.close()
        await asyncio.sleep(0.1)
        descriptors = psutil.Process().num_fds()
        for _ in range(30):
            for path in ("/{web}/", "/{tls}/", "/tcp/{silent}", "/grpc/{grpc}", "/grpc/{closed}", "/{closed}/"):
                await asyncio.to_thread(send_probe, port, Row("", "", 0, ""), apps.path(path))
        assert psutil.Process().num_fds() <= descriptors + 2
