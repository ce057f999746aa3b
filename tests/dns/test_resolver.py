"""The embedded resolver on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING, cast

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from kumadp.dns.resolvconf import ResolvConf
from kumadp.dns.resolver.server import Resolver
from kumadp.dns.resolver.table import Table
from tests.support.needs import need_dig
from tests.support.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HOST = "127.0.0.1"
MANY = [f"240.0.1.{number + 1}" for number in range(60)]
RECORDS = [("backend.mesh", ["240.0.0.1"]), ("many.mesh", MANY)]


class Upstream(asyncio.DatagramProtocol):
    """A name server on a free port, by UDP and TCP; ``reply`` returns its answers, None for silence."""

    def __init__(self, address: str = "192.0.2.1") -> None:
        self.address = address
        self.code: dns.rcode.Rcode = dns.rcode.NOERROR
        self.silent = self.truncates = self.exact = False
        self.spoofs: list[bytes] = []
        self.prefix: Callable[[bytes], list[bytes]] = lambda _answer: []
        """Returns the messages that it sends before an answer."""
        self.changed: Callable[[bytes], bytes] = lambda answer: answer
        self.queries: list[dns.message.Message] = []
        self.tcp_queries = 0
        self.clients: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.clients.add(addr[1])
        answer = self.reply(data)
        for spoof in self.spoofs if answer else ():
            self.transport.sendto(spoof, addr)
        if answer is not None:
            for wrong in (answer[:1] + bytes([answer[1] ^ 1]) + answer[2:], answer.replace(b"example", b"exampLe")):
                if self.spoofs:
                    self.transport.sendto(wrong[:-1] + b"\x63", addr)
            if self.truncates:
                truncated = dns.message.make_response(dns.message.from_wire(data))
                truncated.flags |= dns.flags.TC
                answer = truncated.to_wire()
            for other in self.prefix(answer):
                self.transport.sendto(other, addr)
            self.transport.sendto(self.changed(answer), addr)

    def reply(self, data: bytes) -> bytes | None:
        query = dns.message.from_wire(data)
        self.queries.append(query)
        if self.silent:
            return None
        answer = dns.message.make_response(query)
        name = query.question[0].name
        exists = not self.exact or name.to_text() == "backend.mesh."
        answer.set_rcode(
            self.code if exists and (not self.exact or query.question[0].rdtype == 1) else dns.rcode.NXDOMAIN
        )
        if answer.rcode() == 0 and query.question[0].rdtype == 1:
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", self.address))
        return answer.to_wire()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tcp_queries += 1
        with contextlib.suppress(EOFError):
            data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            answer = self.reply(data) or b""
            for message in (*self.prefix(answer), self.changed(answer)):
                writer.write(len(message).to_bytes(2) + message)
        writer.close()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Upstream]:
        (self.port,) = free_ports(1)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, (HOST, self.port))
        server = await asyncio.start_server(self.connected, HOST, self.port)
        try:
            yield self
        finally:
            transport.close()
            server.close()


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    (port,) = free_ports(1)
    async with Resolver([(HOST, port)]) as resolver:
        resolver.table = Table(RECORDS, suffixes=("mesh",))
        yield resolver


async def send_query(
    resolver: Resolver,
    name: str,
    kind: str = "A",
    *,
    tcp: bool = False,
    host: str = HOST,
    timeout: float = 10.0,
    **options: object,
) -> dns.message.Message:
    message = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
    port = resolver.addresses[0][1]
    way = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await way(message, host, timeout=timeout, port=port)


def texts(answer: dns.message.Message) -> list[str]:
    return [item.to_text() for rrset in answer.answer for item in rrset]


def use(resolver: Resolver, *upstreams: Upstream, **options: object) -> None:
    servers = tuple((HOST, upstream.port) for upstream in upstreams)
    resolver.upstreams.conf = ResolvConf(servers, **options)  # type: ignore[arg-type]


async def test_names_of_the_table_by_udp_and_tcp_in_any_case(resolver: Resolver) -> None:
    for tcp in (False, True):
        answer = await send_query(resolver, "BaCkEnD.mEsh", tcp=tcp)
        assert texts(answer) == ["240.0.0.1"]
        assert answer.question[0].name.to_text() == "BaCkEnD.mEsh."
        assert (await send_query(resolver, "backend.mesh", "AAAA", tcp=tcp)).rcode() == dns.rcode.NOERROR
        assert (await send_query(resolver, "nobody.mesh", tcp=tcp)).rcode() == dns.rcode.NXDOMAIN
    assert resolver.counters.queries == 6
    assert resolver.counters.local[1] >= 3


async def test_sixty_addresses_in_each_way_that_a_client_has(resolver: Resolver) -> None:
    plain = await send_query(resolver, "many.mesh")
    assert plain.flags & dns.flags.TC
    assert 20 < len(texts(plain)) < 60
    large = await send_query(resolver, "many.mesh", use_edns=0, payload=1232)
    assert texts(large) == MANY
    assert texts(await send_query(resolver, "many.mesh", tcp=True)) == MANY


async def test_other_names_are_forwarded_with_random_numbers_and_ports(
    resolver: Resolver,
) -> None:
    async with Upstream().serving() as upstream:
        use(resolver, upstream)
        for number in range(30):
            answer = await send_query(resolver, f"WWW{number}.example.com")
            assert texts(answer) == ["192.0.2.1"]
            assert answer.question[0].name.to_text() == f"WWW{number}.example.com."
        assert len({query.id for query in upstream.queries}) > 25
        assert len(upstream.clients) > 25
        assert upstream.queries[0].question[0].name.to_text() == "WWW0.example.com."


async def test_the_next_server_answers_if_the_first_is_silent_or_fails(resolver: Resolver) -> None:
    async with Upstream("192.0.2.1").serving() as first, Upstream("192.0.2.2").serving() as second:
        use(resolver, first, second)
        for code in (dns.rcode.SERVFAIL, dns.rcode.REFUSED):
            first.code = code
            assert texts(await send_query(resolver, "a.example.com")) == ["192.0.2.2"]
        first.silent = True
        since = time.monotonic()
        assert texts(await send_query(resolver, "a.example.com")) == ["192.0.2.2"]
        assert time.monotonic() - since < 2
        count = len(first.queries)
        for _ in range(5):
            assert texts(await send_query(resolver, "b.example.com")) == ["192.0.2.2"]
        assert len(first.queries) == count, "a silent server is not queried for a while"


async def test_a_closed_port_costs_no_time(resolver: Resolver) -> None:
    async with Upstream("192.0.2.2").serving() as second:
        (closed,) = free_ports(1)
        resolver.upstreams.conf = ResolvConf(((HOST, closed), (HOST, second.port)))
        assert texts(await send_query(resolver, "a.example.com")) == ["192.0.2.2"]


async def test_servfail_if_no_server_answers(resolver: Resolver) -> None:
    assert (await send_query(resolver, "a.example.com")).rcode() == dns.rcode.SERVFAIL
    async with Upstream().serving() as only:
        only.silent = True
        use(resolver, only, timeout=1.0, attempts=2)
        assert (await send_query(resolver, "a.example.com")).rcode() == dns.rcode.SERVFAIL
        assert len(only.queries) == 2


async def test_nxdomain_is_an_answer(resolver: Resolver) -> None:
    async with Upstream().serving() as first, Upstream().serving() as second:
        first.code = dns.rcode.NXDOMAIN
        use(resolver, first, second)
        assert (await send_query(resolver, "a.example.com")).rcode() == dns.rcode.NXDOMAIN
        assert not second.queries


async def test_rotate_queries_the_servers_in_turn(resolver: Resolver) -> None:
    async with Upstream("192.0.2.1").serving() as first, Upstream("192.0.2.2").serving() as second:
        use(resolver, first, second, rotate=True)
        answers = [texts(await send_query(resolver, "a.example.com"))[0] for _ in range(4)]
        assert sorted(answers) == ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2"]


async def test_spoofed_answers_are_ignored(resolver: Resolver) -> None:
    async with Upstream("192.0.2.1").serving() as upstream:
        upstream.spoofs = [b"", b"x", random.Random(1).randbytes(64)]
        use(resolver, upstream)
        for _ in range(20):
            assert texts(await send_query(resolver, "a.example.com")) == ["192.0.2.1"]


def answers_to_others(answer: bytes) -> list[bytes]:
    """Return answers with the right number, but another name, type or class, or no question."""
    end = answer.index(b"\x00", 12) + 1
    kind, klass = bytearray(answer), bytearray(answer)
    kind[end + 1] ^= 0x1C
    klass[end + 3] = 3
    name = answer.replace(b"example", b"exomple")
    nothing = answer[:2] + b"\x81\x83" + bytes(8)
    return [bytes(kind), bytes(klass), name, nothing, answer[:2] + b"\x81\x80" + bytes(8)]


@pytest.mark.parametrize("tcp", [False, True])
async def test_an_answer_to_another_query_is_ignored(resolver: Resolver, tcp: bool) -> None:
    async with Upstream("192.0.2.1").serving() as upstream:
        upstream.prefix = answers_to_others
        use(resolver, upstream, use_tcp=tcp)
        assert texts(await send_query(resolver, "a.example.com", tcp=tcp)) == ["192.0.2.1"]
        assert len(upstream.queries) == 1


@pytest.mark.parametrize("tcp", [False, True])
async def test_a_server_may_change_the_case_of_the_name(resolver: Resolver, tcp: bool) -> None:
    async with Upstream("192.0.2.1").serving() as upstream:
        upstream.changed = lambda answer: answer.replace(b"ExAmple", b"example")
        use(resolver, upstream, use_tcp=tcp)
        answer = await send_query(resolver, "A.ExAmple.com", tcp=tcp)
        assert texts(answer) == ["192.0.2.1"]
        assert answer.question[0].name.to_text() == "A.ExAmple.com."
        assert len(upstream.queries) == 1


async def test_use_vc_queries_by_tcp_only(resolver: Resolver) -> None:
    async with Upstream("192.0.2.1").serving() as upstream:
        use(resolver, upstream, use_tcp=True)
        assert texts(await send_query(resolver, "a.example.com")) == ["192.0.2.1"]
        assert upstream.tcp_queries == len(upstream.queries) == 1


@pytest.mark.parametrize("tcp", [False, True])
async def test_the_health_name_distinguishes_kumadp_from_a_name_server(resolver: Resolver, tcp: bool) -> None:
    async with Upstream("192.0.2.1").serving() as upstream:
        use(resolver, upstream)
        answer = await send_query(resolver, "health.KumaDP.invalid", tcp=tcp)
        assert answer.rcode() == dns.rcode.REFUSED
        assert answer.flags & dns.flags.AA
        assert not upstream.queries


async def test_a_truncated_answer_is_relayed_by_udp_and_queried_again_by_tcp(resolver: Resolver) -> None:
    async with Upstream("192.0.2.1").serving() as upstream:
        upstream.truncates = True
        use(resolver, upstream)
        assert (await send_query(resolver, "a.example.com")).flags & dns.flags.TC
        assert upstream.tcp_queries == 0
        assert texts(await send_query(resolver, "a.example.com", tcp=True)) == ["192.0.2.1"]
        assert upstream.tcp_queries == 1


async def test_kumadp_does_not_query_itself(resolver: Resolver) -> None:
    port = resolver.addresses[0][1]
    resolver.upstreams.conf = ResolvConf(((HOST, port),))
    assert resolver.upstreams.servers == ()
    assert (await send_query(resolver, "a.example.com")).rcode() == dns.rcode.SERVFAIL
    # As if a redirection led our own queries back, whatever their address.
    resolver.upstreams.own = ()
    assert (await send_query(resolver, "a.example.com")).rcode() == dns.rcode.REFUSED
    assert resolver.counters.loops == 1


async def test_envoys_filter_is_queried_first_in_lower_case_and_for_names_of_the_mesh_alone(resolver: Resolver) -> None:
    async with Upstream("240.0.0.9").serving() as envoy, Upstream("192.0.2.1").serving() as other:
        envoy.exact = True
        use(resolver, other)
        resolver.table = Table(suffixes=("mesh",), filtered=True)
        resolver.upstreams.envoy = (HOST, envoy.port)
        for tcp in (False, True):
            answer = await send_query(resolver, "BACKend.mesh", tcp=tcp)
            assert texts(answer) == ["240.0.0.9"]
            assert answer.question[0].name.to_text() == "BACKend.mesh."
        assert (await send_query(resolver, "backend.mesh", "AAAA")).rcode() == dns.rcode.NOERROR
        assert (await send_query(resolver, "nobody.mesh", "AAAA")).rcode() == dns.rcode.NXDOMAIN
        assert not other.queries
        assert texts(await send_query(resolver, "Www.example.com")) == ["192.0.2.1"]
        envoy.silent = True
        assert texts(await send_query(resolver, "www.example.com")) == ["192.0.2.1"]
        assert (await send_query(resolver, "backend.mesh")).rcode() == dns.rcode.SERVFAIL
        assert [query.question[0].name.to_text() for query in other.queries] == ["Www.example.com.", "www.example.com."]


async def test_a_query_that_came_just_before_its_name_is_answered_with_it(resolver: Resolver) -> None:
    resolver.table = Table((), suffixes=["mesh"], filtered=True)
    async with Upstream().serving() as envoy:
        resolver.upstreams.envoy = (HOST, envoy.port)
        reply = asyncio.get_running_loop().create_future()
        resolver.answer_udp(dns.message.make_query("backend.mesh", "A").to_wire(), (HOST, 1053), reply.set_result)
        # The filter goes with the same change.
        resolver.upstreams.envoy = None
        resolver.table = Table(RECORDS, suffixes=["mesh"])
        async with asyncio.timeout(10):
            assert texts(dns.message.from_wire(await reply)) == ["240.0.0.1"]


async def test_a_query_for_a_name_that_leaves_the_mesh_is_not_forwarded_for_a_stranger(resolver: Resolver) -> None:
    resolver.table = Table((), suffixes=["mesh"], filtered=True)
    async with Upstream().serving() as other:
        use(resolver, other)
        reply = asyncio.get_running_loop().create_future()
        query = dns.message.make_query("backend.mesh", "A").to_wire()
        resolver.answer_udp(query, ("198.51.100.7", 1053), reply.set_result)
        resolver.table = Table()
        async with asyncio.timeout(10):
            assert dns.message.from_wire(await reply).rcode() == dns.rcode.NXDOMAIN
        assert not other.queries


async def test_many_queries_on_one_connection_are_answered_as_soon_as_they_are_ready(resolver: Resolver) -> None:
    async with Upstream().serving() as upstream:
        upstream.silent = True
        use(resolver, upstream)
        reader, writer = await asyncio.open_connection(HOST, resolver.addresses[0][1])
        names = ["x.org", *(50 * ["backend.mesh"])]
        queries = [dns.message.make_query(name, "A", id=number) for number, name in enumerate(names)]
        writer.write(b"".join(struct.pack("!H", len(wire)) + wire for wire in (query.to_wire() for query in queries)))
        numbers = set()
        for _ in range(50):
            answer = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2))))
            numbers.add(answer.id)
        assert numbers == set(range(1, 51))
        writer.close()


async def test_answers_leave_from_the_queried_address() -> None:
    (port,) = free_ports(1)
    async with Resolver([("0.0.0.0", port), ("::", port)]) as resolver:
        resolver.table = Table(RECORDS, suffixes=("mesh",))
        for host in ("127.0.0.1", "127.0.0.2", "127.1.2.3", "::1"):
            for tcp in (False, True):
                assert texts(await send_query(resolver, "backend.mesh", tcp=tcp, host=host)) == ["240.0.0.1"]
                assert (await send_query(resolver, "no.mesh", tcp=tcp, host=host)).rcode() == dns.rcode.NXDOMAIN


async def test_the_port_can_be_shared_and_opened_again() -> None:
    (port,) = free_ports(1)
    first, second = (Resolver([(HOST, port)], reuse_port=True) for _ in range(2))
    for resolver in (first, second):
        resolver.table = Table(RECORDS, suffixes=("mesh",))
        await resolver.open()
    for _ in range(3):
        await first.close()
        assert texts(await send_query(second, "backend.mesh")) == ["240.0.0.1"]
        await first.open()
    await first.close()
    await second.close()


async def test_fifty_thousand_names_are_swapped_under_load_and_no_query_is_lost(resolver: Resolver) -> None:
    async def swap(last: int) -> None:
        table, old = Table(), resolver.table
        await table.fill((f"s{number}.mesh", [f"240.1.{number >> 8}.{last}"]) for number in range(50_000))
        resolver.table = table
        await old.clear()
        assert not old.names

    await swap(1)
    answered = 0
    done = asyncio.Event()

    async def client(number: int) -> None:
        nonlocal answered
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect((HOST, resolver.addresses[0][1]))
            query = dns.message.make_query(f"s{number}.mesh", "A").to_wire()
            while not done.is_set():
                sock.send(query)
                async with asyncio.timeout(10):
                    answer = await loop.sock_recv(sock, 512)
                assert answer[-4:-1] == bytes([240, 1, number >> 8])
                answered += 1
                await asyncio.sleep(0.002)

    clients = [asyncio.create_task(client(number)) for number in range(0, 50_000, 5_000)]
    for last in (2, 3, 4):
        await swap(last)
    done.set()
    await asyncio.gather(*clients)
    assert answered > 50
    assert texts(await send_query(resolver, "s49999.mesh")) == ["240.1.195.4"]


async def test_noise_is_survived(resolver: Resolver) -> None:
    noise = random.Random(2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((HOST, resolver.addresses[0][1]))
        for _ in range(500):
            sock.send(noise.randbytes(noise.randrange(100)))
    assert texts(await send_query(resolver, "backend.mesh")) == ["240.0.0.1"]


async def test_dig_accepts_the_answers(resolver: Resolver) -> None:
    port = resolver.addresses[0][1]

    async def dig(*words: str) -> str:
        command = [need_dig(), f"@{HOST}", "-p", str(port), *words]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout

    assert await dig("+short", "BackEnd.mesh") == "240.0.0.1\n"
    truncated = await dig("+ignore", "+noedns", "many.mesh")
    assert " tc" in truncated.split("flags:")[1].split(";")[0]
    assert len((await dig("+short", "+noedns", "many.mesh")).split()) == 60, "dig queries again by TCP"
    assert "status: NOERROR" in (aaaa := await dig("+nocookie", "backend.mesh", "AAAA"))
    assert "ANSWER: 0" in aaaa
    assert "status: NXDOMAIN" in await dig("nobody.mesh")
    assert "malformed" not in truncated + aaaa
