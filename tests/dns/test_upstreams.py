"""Which servers a forwarded query is sent to; the exchange with them is replaced."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest

from kumadp.dns.message import (
    NOERROR,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    Query,
    code_of,
    encode_answer,
    encode_query,
    is_authoritative,
    is_truncated,
    parse_query,
)
from kumadp.dns.resolvconf import ResolvConf
from kumadp.dns.resolver import upstreams as upstreams_module
from kumadp.dns.resolver.answer import Forward
from kumadp.dns.resolver.limits import ResolverLimits
from kumadp.dns.resolver.upstreams import Upstreams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.dns.resolver.exchange import SentQueries

FIRST, SECOND, ENVOY = ("192.0.2.1", 53), ("192.0.2.2", 53), ("127.0.0.1", 15054)
SILENT = "silent"
Result = int | str | OSError


class Network:
    """Servers by address, each with the code of its answers, an error, or silence."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, results: Mapping[tuple[str, int], Result]) -> None:
        self.results = dict(results)
        self.truncates = False
        self.queries: list[tuple[str, tuple[str, int], bytes]] = []
        monkeypatch.setattr(upstreams_module, "query_udp", self._query_udp)
        monkeypatch.setattr(upstreams_module, "query_tcp", self._query_tcp)
        monkeypatch.setattr(upstreams_module, "NEXT_SERVER_AFTER", 0.02)
        monkeypatch.setattr(upstreams_module, "FILTER_TIMEOUT", 0.02)
        monkeypatch.setattr(upstreams_module, "MESH_FILTER_TIMEOUT", 0.02)

    async def _query_udp(self, server: tuple[str, int], data: bytes, question: bytes, _sent: SentQueries) -> bytes:
        return await self._query("udp", server, data, question)

    async def _query_tcp(self, server: tuple[str, int], data: bytes, question: bytes, _sent: SentQueries) -> bytes:
        return await self._query("tcp", server, data, question)

    async def _query(self, transport: str, server: tuple[str, int], data: bytes, question: bytes) -> bytes:
        self.queries.append((transport, server, question))
        result = self.results[server]
        if isinstance(result, OSError):
            raise result
        if isinstance(result, str):
            await asyncio.Event().wait()
        query = parse_query(data)
        assert isinstance(query, Query)
        assert isinstance(result, int)
        return encode_answer(query, result, truncated=self.truncates and transport == "udp")

    @property
    def servers(self) -> list[tuple[str, int]]:
        return [server for _, server, _ in self.queries]


def forward(name: str = "a.example.com", kind: int = 1, *, in_mesh: bool = False) -> tuple[Forward, bytes]:
    data = encode_query(name, kind, number=9)
    query = parse_query(data)
    assert isinstance(query, Query)
    return Forward(query, in_mesh), data


async def resolve(upstreams: Upstreams, name: str = "a.example.com", kind: int = 1, *, in_mesh: bool = False) -> bytes:
    return await upstreams.resolve(*forward(name, kind, in_mesh=in_mesh), "udp")


def both(**options: object) -> Upstreams:
    return Upstreams(ResolvConf((FIRST, SECOND), timeout=0.1, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [NOERROR, NXDOMAIN])
async def test_the_first_answer_is_final(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    network, upstreams = Network(monkeypatch, {FIRST: code, SECOND: NOERROR}), both()
    assert code_of(await resolve(upstreams)) == code
    assert network.servers == [FIRST]
    assert (upstreams.counters.forwarded, upstreams.counters.failed) == (1, 0)


@pytest.mark.parametrize("failure", [SERVFAIL, REFUSED, OSError(errno.ECONNREFUSED, "refused")])
async def test_the_next_server_is_queried_after_a_failure(monkeypatch: pytest.MonkeyPatch, failure: Result) -> None:
    network, upstreams = Network(monkeypatch, {FIRST: failure, SECOND: NOERROR}), both()
    assert code_of(await resolve(upstreams)) == NOERROR
    assert network.servers == [FIRST, SECOND]


async def test_a_silent_server_comes_last_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    network, upstreams = Network(monkeypatch, {FIRST: SILENT, SECOND: NOERROR}), both()
    for _ in range(2):
        assert code_of(await resolve(upstreams)) == NOERROR
    assert network.servers == [FIRST, SECOND, SECOND]


async def test_a_failure_is_returned_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    network, upstreams = Network(monkeypatch, {FIRST: REFUSED, SECOND: REFUSED}), both(attempts=3)
    assert code_of(await resolve(upstreams)) == REFUSED
    assert network.servers == [FIRST, SECOND]
    assert upstreams.counters.failed == 0


async def test_silent_servers_get_each_attempt_and_the_client_servfail(monkeypatch: pytest.MonkeyPatch) -> None:
    network, upstreams = Network(monkeypatch, {FIRST: SILENT, SECOND: SILENT}), both(attempts=2)
    assert code_of(await resolve(upstreams)) == SERVFAIL
    assert network.servers == [FIRST, SECOND, FIRST, SECOND]
    assert upstreams.counters.failed == 1


async def test_rotate_begins_with_another_server_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    network, upstreams = Network(monkeypatch, {FIRST: NOERROR, SECOND: NOERROR}), both(rotate=True)
    for _ in range(4):
        await resolve(upstreams)
    assert network.servers == [SECOND, FIRST, SECOND, FIRST]


async def test_without_a_server_the_client_gets_servfail() -> None:
    upstreams = Upstreams(ResolvConf((FIRST,)), own=[FIRST])
    assert upstreams.servers == ()
    assert code_of(await resolve(upstreams)) == SERVFAIL


@pytest.mark.parametrize(("transport", "expected"), [("udp", ["udp"]), ("tcp", ["udp", "tcp"])])
async def test_a_truncated_answer_is_queried_by_tcp_for_a_client_by_tcp(
    monkeypatch: pytest.MonkeyPatch, transport: str, expected: list[str]
) -> None:
    network, upstreams = Network(monkeypatch, {FIRST: NOERROR, SECOND: NOERROR}), both()
    network.truncates = True
    reply = await upstreams.resolve(*forward(), transport)  # type: ignore[arg-type]
    assert is_truncated(reply) is (transport == "udp")
    assert [queried for queried, _, _ in network.queries] == expected


async def test_use_vc_queries_by_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    network, upstreams = Network(monkeypatch, {FIRST: NOERROR}), both(use_tcp=True)
    await resolve(upstreams)
    assert [transport for transport, _, _ in network.queries] == ["tcp"]


async def test_above_the_limit_the_client_gets_servfail(monkeypatch: pytest.MonkeyPatch) -> None:
    Network(monkeypatch, {FIRST: SILENT, SECOND: SILENT})
    upstreams = both()
    upstreams.limits = ResolverLimits(forwarded=1)
    first = asyncio.create_task(resolve(upstreams))
    await asyncio.sleep(0)
    assert code_of(await resolve(upstreams)) == SERVFAIL
    assert upstreams.counters.refused == 1
    assert code_of(await first) == SERVFAIL


class TestEnvoy:
    async def test_a_name_that_it_does_not_know_is_forwarded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network, upstreams = Network(monkeypatch, {ENVOY: NXDOMAIN, FIRST: NOERROR, SECOND: NOERROR}), both()
        upstreams.envoy = ENVOY
        assert code_of(await resolve(upstreams)) == NOERROR
        assert network.servers == [ENVOY, FIRST]

    async def test_it_is_queried_in_lower_case(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network, upstreams = Network(monkeypatch, {ENVOY: NOERROR}), both()
        upstreams.envoy = ENVOY
        await resolve(upstreams, "BackEnd.mesh", in_mesh=True)
        assert network.queries == [("udp", ENVOY, encode_query("backend.mesh")[12:])]

    @pytest.mark.parametrize("result", [NXDOMAIN, SILENT, OSError(errno.ECONNREFUSED, "refused")])
    async def test_names_of_the_mesh_are_never_forwarded(self, monkeypatch: pytest.MonkeyPatch, result: Result) -> None:
        network, upstreams = Network(monkeypatch, {ENVOY: result, FIRST: NOERROR}), both()
        upstreams.envoy = ENVOY
        assert code_of(await resolve(upstreams, in_mesh=True)) == (NXDOMAIN if result == NXDOMAIN else SERVFAIL)
        assert network.servers == [ENVOY]

    async def test_without_it_names_of_the_mesh_do_not_exist(self) -> None:
        answer = await resolve(both(), in_mesh=True)
        assert code_of(answer) == NXDOMAIN
        assert is_authoritative(answer)

    @pytest.mark.parametrize("code", [NOERROR, NXDOMAIN])
    async def test_another_type_of_a_name_exists_if_its_a_does(
        self, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        upstreams, questions = both(), []
        upstreams.envoy = ENVOY

        async def query_udp(_server: tuple[str, int], data: bytes, question: bytes, _sent: SentQueries) -> bytes:
            questions.append(question[-4:])
            query = parse_query(data)
            assert isinstance(query, Query)
            return encode_answer(query, code if query.type == 1 else NXDOMAIN)

        monkeypatch.setattr(upstreams_module, "query_udp", query_udp)
        assert code_of(await resolve(upstreams, kind=28, in_mesh=True)) == code
        assert questions == [b"\0\x1c\0\1", b"\0\1\0\1"]

    async def test_a_silent_filter_is_left_out_for_other_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        network, upstreams = Network(monkeypatch, {ENVOY: SILENT, FIRST: NOERROR}), both()
        upstreams.envoy = ENVOY
        for _ in range(2):
            assert code_of(await resolve(upstreams)) == NOERROR
        assert network.servers == [ENVOY, FIRST, FIRST]


async def test_too_many_sockets_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    network, upstreams = Network(monkeypatch, {FIRST: NOERROR}), both()
    monkeypatch.setattr(upstreams_module, "share", lambda _most, _part: 0)
    assert code_of(await resolve(upstreams)) == SERVFAIL
    assert network.queries == []


async def test_envoy_has_more_time_for_names_of_the_mesh_than_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams, answers = Upstreams(envoy=ENVOY), asyncio.Event()

    async def query_udp(_server: tuple[str, int], data: bytes, _question: bytes, _sent: SentQueries) -> bytes:
        await answers.wait()
        query = parse_query(data)
        assert isinstance(query, Query)
        return encode_answer(query, NOERROR)

    monkeypatch.setattr(upstreams_module, "query_udp", query_udp)
    monkeypatch.setattr(upstreams_module, "FILTER_TIMEOUT", 0.02)
    monkeypatch.setattr(upstreams_module, "MESH_FILTER_TIMEOUT", 60.0)
    in_mesh = asyncio.create_task(resolve(upstreams, "a.mesh", in_mesh=True))
    await asyncio.sleep(0)
    assert code_of(await resolve(upstreams)) == SERVFAIL
    assert not in_mesh.done()
    answers.set()
    assert code_of(await in_mesh) == NOERROR
