"""Virtual probes: a real server in front of real applications on sockets."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from kumadp.core.component import Stack
from kumadp.errors import PortsTaken
from kumadp.probes.application_slots import MAX_PROBES_PER_APPLICATION
from kumadp.probes.virtual_probes import (
    LONGEST_TIMEOUT,
    MAX_BODY,
    ProbeRoutes,
    ProbeTarget,
    VirtualProbes,
    routes_of,
)
from kumadp.resources.load import load_resource
from kumadp.resources.types import Dataplane
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass
class Application:
    """Sends a scripted response to every request, and records the heads of the requests."""

    port: int
    answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    hang: bool = False
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    open_connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head.decode())
            lengths = [line for line in head.decode().lower().splitlines() if line.startswith("content-length:")]
            if lengths:
                self.bodies.append(await reader.readexactly(int(lengths[0].split(":")[1])))
            if self.hang:
                await reader.read()
            writer.write(self.answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()

    def header(self, name: str) -> str | None:
        """A header of the last request."""
        for line in self.heads[-1].splitlines()[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name:
                return value
        return None


@contextlib.asynccontextmanager
async def application(host: str = "127.0.0.1", **behaviour: object) -> AsyncIterator[Application]:
    app = Application(0)
    for name, value in behaviour.items():
        setattr(app, name, value)
    server = await asyncio.start_server(app.serve, host, 0)
    app.port = server.sockets[0].getsockname()[1]
    try:
        yield app
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def probes(routes: ProbeRoutes, *, body_timeout: float = LONGEST_TIMEOUT) -> AsyncIterator[int]:
    port = free_port()
    stack = Stack(lambda _name, _error: None)
    await stack.enter(VirtualProbes("127.0.0.1", port, routes, body_timeout=body_timeout))
    try:
        yield port
    finally:
        await stack.leave()


async def send(port: int, request: str | bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to raw bytes; the server must close the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.encode() if isinstance(request, str) else request)
        async with asyncio.timeout(30):
            data = await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = f"{headers[name.lower()]}|{value}" if name.lower() in headers else value
    return int(first.split()[1]), headers, body


def get(path: str, *headers: str, method: str = "GET", body: str = "") -> str:
    lines = [f"{method} {path} HTTP/1.1", "Host: probe.example:9000", *headers]
    return "\r\n".join([*lines, "", body])


def single_route(port: int, path: str = "/healthz", listed: str = "/8080/healthz") -> ProbeRoutes:
    return ProbeRoutes({listed: ProbeTarget("127.0.0.1", port, path)})


async def test_a_listed_path_is_proxied_to_the_application() -> None:
    async with application() as app, probes(single_route(app.port)) as port:
        status, headers, body = await send(
            port, get("/8080/healthz?full=1&x=%20", "X-Mine: yes", "User-Agent: kubelet")
        )
        assert (status, body) == (200, b"ok")
        assert headers["connection"] == "close"
        assert app.heads[-1].startswith("GET /healthz?full=1&x=%20 HTTP/1.1\r\n")
        assert app.header("host") == "probe.example:9000"
        assert app.header("x-mine") == "yes"
        assert app.header("user-agent") == "kubelet"


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/8080", "/8080/healthz/", "/8080/healthz/more", "/8081/healthz", "*"]
)
async def test_unlisted_paths_are_404(path: str) -> None:
    async with application() as app, probes(single_route(app.port)) as port:
        status, _, _ = await send(port, get(path, method="OPTIONS" if path == "*" else "GET"))
        assert status == 404
        assert app.heads == []


async def test_hop_by_hop_headers_are_removed_in_both_directions() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nConnection: X-Drop, keep-alive\r\nX-Drop: 1\r\nX-Keep: 2\r\n"
        b"Keep-Alive: timeout=5\r\n\r\n"
    )
    async with application(answer=answer) as app, probes(single_route(app.port)) as port:
        _, headers, _ = await send(
            port, get("/8080/healthz", "Connection: close, X-Private", "X-Private: 1", "TE: trailers", "X-Kept: 2")
        )
        assert app.header("x-private") is None
        assert app.header("te") is None
        assert app.header("x-kept") == "2"
        assert "x-drop" not in headers
        assert "keep-alive" not in headers
        assert headers["x-keep"] == "2"


async def test_status_headers_and_body_are_returned_unchanged() -> None:
    answer = (
        b"HTTP/1.1 418 Short And Stout\r\ncontent-type: x/y\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x00\x01"
    )
    async with application(answer=answer) as app, probes(single_route(app.port)) as port:
        status, headers, body = await send(port, get("/8080/healthz"))
        assert (status, body) == (418, b"\x1f\x8b\x00\x01")
        assert headers["set-cookie"] == "a=1|b=2"
        assert headers["content-type"] == "x/y"
        assert headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("odd", ["a\x01b", "a\x7fb", "\x1b[2J"])
async def test_only_the_header_with_a_control_character_is_removed(odd: str) -> None:
    answer = f"HTTP/1.1 200 O{odd}K\r\nx-odd: {odd}\r\nx-tab: a\tb\r\ncontent-length: 2\r\n\r\nok".encode()
    async with application(answer=answer) as app, probes(single_route(app.port)) as port:
        status, headers, body = await send(port, get("/8080/healthz", "X-Tab: a\tb"))
        assert (status, body) == (200, b"ok")
        assert "x-odd" not in headers
        assert headers["x-tab"] == "a\tb"
        assert app.header("x-tab") == "a\tb"


async def test_a_redirect_is_passed_back_and_not_followed() -> None:
    answer = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
    async with application(answer=answer) as app, probes(single_route(app.port)) as port:
        status, headers, _ = await send(port, get("/8080/healthz"))
        assert (status, headers["location"]) == (302, "http://127.0.0.1:1/")
        assert len(app.heads) == 1


async def test_method_and_body_are_forwarded() -> None:
    async with application() as app, probes(single_route(app.port)) as port:
        await send(port, get("/8080/healthz", "Content-Length: 5", method="POST", body="hello"))
        assert app.heads[-1].startswith("POST /healthz HTTP/1.1")
        assert app.bodies == [b"hello"]


async def test_head_has_no_body() -> None:
    async with (
        application(answer=b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n") as app,
        probes(single_route(app.port)) as port,
    ):
        status, _, body = await send(port, get("/8080/healthz", method="HEAD"))
        assert (status, body) == (200, b"")
        assert app.heads[-1].startswith("HEAD ")


async def test_a_path_with_its_own_query_and_unusual_characters() -> None:
    async with application() as app, probes(single_route(app.port, "/a b/ü?ready=1")) as port:
        await send(port, get("/8080/healthz"))
        assert app.heads[-1].startswith("GET /a%20b/%C3%BC?ready=1 HTTP/1.1")
        await send(port, get("/8080/healthz?more=2"))
        assert app.heads[-1].startswith("GET /a%20b/%C3%BC?ready=1&more=2 HTTP/1.1")


async def test_an_unreachable_application_is_503_with_the_reason() -> None:
    dead = free_port()
    async with probes(single_route(dead)) as port:
        status, _, body = await send(port, get("/8080/healthz"))
        assert status == 503
        assert f"127.0.0.1:{dead}" in body.decode()
        assert "refused" in body.decode()
        assert len(body.decode().splitlines()) == 1


async def test_an_application_that_hangs_is_504_with_the_reason() -> None:
    async with application(hang=True) as app, probes(single_route(app.port)) as port:
        status, _, body = await send(port, get("/8080/healthz", "X-Kuma-Probes-Timeout: 1"))
        assert status == 504
        assert "did not answer within 1 s" in body.decode()
        assert app.header("x-kuma-probes-timeout") is None


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort"])
async def test_an_invalid_http_response_is_503(answer: bytes) -> None:
    async with application(answer=answer) as app, probes(single_route(app.port)) as port:
        assert (await send(port, get("/8080/healthz")))[0] == 503


async def test_a_large_response_is_truncated_at_64_kib() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000
    async with application(answer=answer) as app, probes(single_route(app.port)) as port:
        status, headers, body = await send(port, get("/8080/healthz"))
        assert status == 200
        assert len(body) == MAX_BODY == int(headers["content-length"])


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_request_is_rejected(chunked: bool) -> None:
    size = MAX_BODY + 1
    if chunked:
        request = get("/8080/healthz", "Transfer-Encoding: chunked", method="POST").encode()
        request += b"%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n"
    else:
        request = get("/8080/healthz", f"Content-Length: {size}", method="POST", body="x" * size).encode()
    async with application() as app, probes(single_route(app.port)) as port:
        assert (await send(port, request))[0] == 413
        assert app.heads == []


async def test_a_request_that_never_ends_is_408() -> None:
    async with application() as app, probes(single_route(app.port), body_timeout=0.2) as port:
        assert (await send(port, get("/8080/healthz", "Content-Length: 9", method="POST", body="half")))[0] == 408
        assert app.heads == []


async def test_a_hung_application_delays_no_other_path() -> None:
    async with application(hang=True) as stuck, application() as well:
        ports = {"/stuck": stuck.port, "/well": well.port}
        routes = ProbeRoutes({path: ProbeTarget("127.0.0.1", port, "/") for path, port in ports.items()})
        async with probes(routes) as port:
            slow = [asyncio.create_task(send(port, get("/stuck", "X-Kuma-Probes-Timeout: 30"))) for _ in range(120)]
            async with asyncio.timeout(20):
                while stuck.open_connections < MAX_PROBES_PER_APPLICATION:
                    await asyncio.sleep(0)
            assert (await send(port, get("/well")))[0] == 200
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)


async def test_connections_to_the_application_are_not_reused() -> None:
    async with application() as app, probes(single_route(app.port)) as port:
        for _ in range(3):
            await send(port, get("/8080/healthz"))
        assert len(app.heads) == 3
        async with asyncio.timeout(20):
            while app.open_connections:
                await asyncio.sleep(0)


async def test_generic_routes_serve_listed_ports_only() -> None:
    async with application() as app, probes(ProbeRoutes({}, [app.port])) as port:
        assert (await send(port, get(f"/{app.port}/live/now?x=1")))[0] == 200
        assert app.heads[-1].startswith("GET /live/now?x=1 HTTP/1.1")
        assert (await send(port, get(f"/{app.port}")))[0] == 200
        assert app.heads[-1].startswith("GET / HTTP/1.1")
        for path in (f"/{port}/x", "/9901/server_info", "/x/y", f"/0{app.port}x/", "/", f"//{app.port}/"):
            assert (await send(port, get(path)))[0] == 404
        assert len(app.heads) == 2


async def test_a_port_in_use_is_reported_by_the_constructor() -> None:
    async with probes(ProbeRoutes({})) as port:
        with pytest.raises(PortsTaken):
            VirtualProbes("127.0.0.1", port, ProbeRoutes({}))


DATAPLANE = """\
type: Dataplane
mesh: default
name: web
networking:
  address: 192.0.2.7
  inbound:
    - {port: 11011, servicePort: 8080, serviceAddress: 127.0.0.1, tags: {kuma.io/service: a}}
    - {port: 11012, servicePort: 8081, tags: {kuma.io/service: b}}
    - {port: 11013, address: 192.0.2.8, tags: {kuma.io/service: c}}
probes:
  endpoints:
    - {inboundPort: 11011, inboundPath: /one, path: /a}
    - {inboundPort: 11012, inboundPath: /two, path: /b}
    - {inboundPort: 11013, inboundPath: /three, path: /c}
    - {inboundPort: 8080, inboundPath: "/f%2Four?full=1", path: "/d?ignored=1"}
    - {inboundPort: 8081, inboundPath: /five, path: "/%65"}
"""
BOTH_READINGS = """\
type: Dataplane
mesh: default
name: web
networking:
  address: 192.0.2.7
  inbound:
    - {port: 8080, servicePort: 9090, tags: {kuma.io/service: a}}
    - {port: 18080, servicePort: 8080, serviceAddress: 127.0.0.1, tags: {kuma.io/service: b}}
    - {port: 9090, servicePort: 7070, tags: {kuma.io/service: c}}
probes:
  endpoints:
    - {inboundPort: 8080, inboundPath: /, path: /kuma}
    - {inboundPort: 9090, inboundPath: /, path: /kuma-too}
    - {inboundPort: 18080, inboundPath: /, path: /own}
"""


def test_the_inbound_gives_host_and_port_of_the_application() -> None:
    spec = load_resource(DATAPLANE, "dp.yaml").spec
    assert isinstance(spec, Dataplane)
    find: Callable[[str], ProbeTarget | None] = routes_of(spec).find
    assert find("/a") == ProbeTarget("127.0.0.1", 8080, "/one")
    assert find("/b") == ProbeTarget("192.0.2.7", 8081, "/two")
    assert find("/c") == ProbeTarget("192.0.2.8", 11013, "/three")
    assert find("/d") == ProbeTarget("127.0.0.1", 8080, "/f%2Four?full=1")
    assert find("/e") == ProbeTarget("192.0.2.7", 8081, "/five")
    assert find("/one") is None


def test_an_ambiguous_inbound_port_means_the_application_port_as_in_kuma() -> None:
    spec = load_resource(BOTH_READINGS, "dp.yaml").spec
    assert isinstance(spec, Dataplane)
    find: Callable[[str], ProbeTarget | None] = routes_of(spec).find
    assert find("/kuma") == ProbeTarget("127.0.0.1", 8080, "/")
    assert find("/kuma-too") == ProbeTarget("192.0.2.7", 9090, "/")
    assert find("/own") == ProbeTarget("127.0.0.1", 8080, "/")


def test_a_gateway_is_probed_at_its_own_address() -> None:
    text = """
type: Dataplane
mesh: default
name: gw
networking:
  address: 192.0.2.7
  gateway: {tags: {kuma.io/service: edge}}
probes:
  port: 9000
  endpoints: [{inboundPort: 8100, inboundPath: /status, path: /8100/status}]
"""
    spec = load_resource(text, "dp.yaml").spec
    assert isinstance(spec, Dataplane)
    assert routes_of(spec).find("/8100/status") == ProbeTarget("192.0.2.7", 8100, "/status")
