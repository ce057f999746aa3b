"""The application probe proxy in front of real applications: every row of the table, and what no row can say."""

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
from kumadp.probes.application import PER_APPLICATION, ProbeProxy
from tests.support.applications import Applications, applications
from tests.support.ports import free_port
from tests.support.probe_table import TABLE, Row, seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

FORBIDDEN = 1


@pytest.fixture(scope="module")
def apps() -> Iterator[Applications]:
    with applications(forbidden=FORBIDDEN) as running:
        yield running


@contextlib.asynccontextmanager
async def proxy(*, sourced: bool = False, host: str = "127.0.0.1") -> AsyncIterator[int]:
    port = free_port()

    async def place(asked: int) -> str | None:
        return host if asked != FORBIDDEN else None

    stack = Stack(lambda _name, _error: None)
    await stack.enter(ProbeProxy("127.0.0.1", port, place, sourced=sourced))
    try:
        yield port
    finally:
        await stack.leave()


def assert_seen(seen: dict[str, str]) -> None:
    """What a kubelet's probe with a custom header leads to."""
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


def ask(port: int, row: Row, path: str) -> tuple[int, str, dict[str, str]]:
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
        status, body, headers = await asyncio.to_thread(ask, port, row, apps.path(row.path))
    assert status == row.code
    if row.word:
        assert body == row.word + "\n"
        assert headers.pop("date")
        assert headers == {
            "content-type": "text/plain; charset=utf-8",
            "x-content-type-options": "nosniff",
            "content-length": str(len(body)),
        }


async def test_a_redirect_of_ours_is_go_s(apps: Applications) -> None:
    async with proxy() as port:
        status, body, headers = await asyncio.to_thread(ask, port, Row("", "", 0, ""), "//8080/../8081//x/?a=b&c")
    assert (status, headers["location"]) == (307, "/8081/x/?a=b&c")
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert body == '<a href="/8081/x/?a=b&amp;c">Temporary Redirect</a>.\n\n'


async def test_the_application_sees_a_get_with_the_headers_of_the_probe(apps: Applications) -> None:
    async with proxy() as port:
        status, _, _ = await asyncio.to_thread(ask, port, LIKE_KUBELET, apps.path(LIKE_KUBELET.path))
        assert status == 200
        seen = apps.web.seen[-1]
        assert_seen(seen)
        assert seen["host"] == f"127.0.0.1:{apps.web.port}"
        assert seen["connection"] == "close"
        # kuma-dp adds gzip here, kubelet does not.
        assert "accept-encoding" not in seen or seen["accept-encoding"] == "identity"
        await asyncio.to_thread(ask, port, Row("", "", 0, ""), f"/{apps.web.port}/")
        assert apps.web.seen[-1]["user-agent"] == f"kuma-probe/{__version__}"
        await asyncio.to_thread(ask, port, Row("", "", 0, ""), f"/grpc/{apps.grpc}")
        assert apps.agents[-1].startswith(f"kube-probe/{__version__}")


async def test_a_named_host_stays_on_a_relative_redirect_and_goes_with_an_absolute_one(apps: Applications) -> None:
    named = {"X-Kuma-Probes-Host": "web.example"}
    async with proxy() as port:
        for path, host in (("loop/1", "web.example"), ("absolute/x", f"127.0.0.1:{apps.web.port}")):
            await asyncio.to_thread(ask, port, Row("", "", 0, "", named), f"/{apps.web.port}/{path}")
            first, last = apps.web.seen[-2:] if path != "loop/1" else (apps.web.seen[-3], apps.web.seen[-1])
            assert (first["host"], last["host"]) == ("web.example", host)


async def test_a_redirect_to_what_may_not_be_probed_counts_as_success(
    apps: Applications, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxy() as port:
        for target, said in (("forbidden", "what may not be probed"), ("other", "another host")):
            row = Row("", "", 0, "")
            for _ in range(2):
                told = await asyncio.to_thread(ask, port, row, f"/{apps.web.port}/to/{target}")
                assert told[:2] == (200, "HEALTHY\n")
            assert len([line for line in caplog.messages if said in line]) == 1


@pytest.mark.parametrize(("sourced", "source"), [(True, "127.0.0.6"), (False, "127.0.0.1")])
async def test_the_source_that_transparent_proxying_passes_by(apps: Applications, sourced: bool, source: str) -> None:
    async with proxy(sourced=sourced) as port:
        assert (await asyncio.to_thread(ask, port, Row("", "", 0, ""), f"/{apps.web.port}/x"))[0] == 200
        assert apps.web.seen[-1]["from"] == source
        with socket.create_server(("127.0.0.1", 0)) as listening:
            path = f"/tcp/{listening.getsockname()[1]}"
            assert (await asyncio.to_thread(ask, port, Row("", "", 0, ""), path))[0] == 200
            connection, address = listening.accept()
            connection.close()
            assert address[0] == source
        assert (await asyncio.to_thread(ask, port, Row("", "", 0, ""), f"/grpc/{apps.grpc}"))[0] == 200


async def test_over_ipv6_without_the_source_that_is_not_here() -> None:
    with applications("::1") as six:
        async with proxy(sourced=True, host="::1") as port:
            for path in ("/{web}/loop/2", "/{web}/absolute/code/200", "/tcp/{silent}"):
                told = await asyncio.to_thread(ask, port, Row("", "", 0, ""), six.path(path))
                assert told[:2] == (200, "HEALTHY\n"), path


@pytest.mark.parametrize(("host", "told"), [("localhost", (200, "HEALTHY\n")), ("", (503, "UNHEALTHY\n"))])
async def test_a_place_that_is_a_name_and_one_that_is_not_known_yet(
    apps: Applications, host: str, told: tuple[int, str]
) -> None:
    async with proxy(host=host) as port:
        assert (await asyncio.to_thread(ask, port, Row("", "", 0, ""), f"/{apps.web.port}/"))[:2] == told


async def test_what_may_not_be_probed_is_not(apps: Applications) -> None:
    async with proxy() as port:
        for kind in ("", "tcp/", "grpc/"):
            told = await asyncio.to_thread(ask, port, Row("", "", 0, ""), f"/{kind}{FORBIDDEN}")
            assert told[:2] == (503, "UNKNOWN\n")


async def test_a_longer_timeout_is_waited_for(apps: Applications) -> None:
    async with proxy() as port:
        row = Row("", "", 0, "", seconds("60"))
        asking = asyncio.create_task(asyncio.to_thread(ask, port, row, f"/{apps.web.port}/slow"))
        # Longer than a probe takes that names no timeout.
        await asyncio.sleep(1.3)
        assert not asking.done()
        apps.web.slow.set()
        assert (await asking)[0] == 200


async def test_hung_applications_cost_the_others_nothing_and_no_descriptor_is_left(apps: Applications) -> None:
    async with proxy() as port:
        row = Row("", "", 0, "", seconds("60"))
        hung = []
        for _ in range(PER_APPLICATION + 5):
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /{apps.silent}/ HTTP/1.1\r\nhost: x\r\nx-kuma-probes-timeout: 60\r\n\r\n".encode())
            hung.append(writer)
        assert (await asyncio.to_thread(ask, port, row, f"/{apps.web.port}/"))[0] == 200
        assert (await asyncio.to_thread(ask, port, row, f"/grpc/{apps.grpc}"))[0] == 200
        for writer in hung:
            writer.close()
        await asyncio.sleep(0.1)
        before = psutil.Process().num_fds()
        for _ in range(30):
            for path in ("/{web}/", "/{tls}/", "/tcp/{silent}", "/grpc/{grpc}", "/grpc/{closed}", "/{closed}/"):
                await asyncio.to_thread(ask, port, Row("", "", 0, ""), apps.path(path))
        assert psutil.Process().num_fds() <= before + 2
