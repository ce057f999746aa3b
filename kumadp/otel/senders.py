"""Sends OTLP messages as they are, raw bytes, to collectors: by gRPC, or by HTTP with protobuf bodies (OTLP 1.x)."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import ssl
from typing import TYPE_CHECKING, Protocol

from kumadp.addresses import address_text, server_name, with_port
from kumadp.grpc.call import OK, UNAVAILABLE, StreamEnded
from kumadp.grpc.client import connect
from kumadp.host.net.tls import client_context, read_anchors_file
from kumadp.otel.environment import HTTP

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from kumadp.grpc.client import GrpcConnection
    from kumadp.otel.routes import Route, Target

UNKNOWN, DEADLINE_EXCEEDED = 2, 4
# Who sent it may try again (OTLP's specification, "Retryable Response Codes").
_RETRYABLE = {429, 502, 503, 504}
# So much of what a collector says against it is quoted (kuma-dp 2.14), in bytes.
QUOTED = 1024
_SERVICES = {"traces": "trace", "logs": "logs", "metrics": "metrics"}
# Where the collector's Unix socket is, its TCP, or its name server cannot be asked (seconds).
_RESOLVE_SECONDS = 5.0
# A message of this size or more is packed in a thread.
_LARGE = 64 << 10


def method(signal: str) -> str:
    """The path of a signal's Export (opentelemetry-proto, collector/*/v1)."""
    name = _SERVICES[signal]
    return f"/opentelemetry.proto.collector.{name}.v1.{name.capitalize()}Service/Export"


class Refused(Exception):
    """It was not taken; ``status`` is a gRPC code."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Sender(Protocol):
    """A connection to a collector, opened with the first message and again where it broke."""

    async def send(self, signal: str, route: Route, message: bytes) -> bytes:
        """What the collector answers; raises Refused."""

    async def close(self) -> None:
        """End it."""


def sender_for(target: Target) -> Sender:
    """By the protocol of the target."""
    return HttpSender(target) if target.protocol == HTTP else GrpcSender(target)


class GrpcSender:
    """gRPC over one connection."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._wire: GrpcConnection | None = None
        self._dialling = asyncio.Lock()

    async def send(self, signal: str, route: Route, message: bytes) -> bytes:
        """What the collector answers; raises Refused."""
        headers = {name.lower(): value for name, value in route.headers.items()}
        if route.gzip:
            headers["grpc-encoding"] = "gzip"
            message = await _packed(message)
        bound = asyncio.timeout(route.timeout)
        try:
            async with bound:
                return await self._send(method(signal), headers, message, packed=route.gzip)
        except (OSError, ValueError) as error:
            if bound.expired():
                raise _late(route) from None
            raise Refused(UNAVAILABLE, f"the collector cannot be reached: {_reason(error)}") from None
        except StreamEnded as ended:
            text = ended.text.encode()[:QUOTED].decode(errors="replace")
            if ended.status is None:
                raise Refused(UNAVAILABLE, f"the connection to the collector broke: {text}") from None
            raise Refused(
                ended.status or UNKNOWN, f"the collector answers with status {ended.status}: {text}"
            ) from None

    async def close(self) -> None:
        """End it."""
        await self._drop(self._wire)

    async def _send(self, path: str, headers: dict[str, str], message: bytes, *, packed: bool) -> bytes:
        wire = await self._connected()
        try:
            return await _ask(wire, path, headers, message, packed=packed)
        except StreamEnded as ended:
            if ended.status is not None:
                raise
            # It had ended before it was used, as a collector that is started again does: once more.
            await self._drop(wire)
        wire = await self._connected()
        try:
            return await _ask(wire, path, headers, message, packed=packed)
        except StreamEnded as ended:
            if ended.status is None:
                await self._drop(wire)
            raise

    async def _connected(self) -> GrpcConnection:
        async with self._dialling:
            if self._wire is None:
                target, address = self._target, self._target.address
                tls = await asyncio.to_thread(_tls, target) if target.tls else None
                name = "localhost" if isinstance(address, str) else server_name(address[0])
                failure: OSError | None = None
                for numeric in [address] if isinstance(address, str) else await _resolved(address):
                    try:
                        # Collectors take pings without calls for an attack (grpc-go's default policy).
                        self._wire = await connect(
                            numeric, authority=target.authority, tls=tls, server_name=name, ping=None
                        )
                        break
                    except OSError as error:
                        failure = error
                if self._wire is None:
                    raise failure or OSError("it has no address")
            return self._wire

    async def _drop(self, wire: GrpcConnection | None) -> None:
        if wire is not None:
            if self._wire is wire:
                self._wire = None
            await wire.close()


async def _ask(wire: GrpcConnection, path: str, headers: dict[str, str], message: bytes, *, packed: bool) -> bytes:
    call = await wire.call(path, headers)
    try:
        await call.send(message, last=True, packed=packed)
        answer = await call.receive(unpack=True)
        try:
            await call.receive(unpack=True)
        except StreamEnded as ended:
            if ended.status != OK:
                raise
        return answer
    finally:
        call.close()


class HttpSender:
    """HTTP/1.1 with kept connections."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._session: ClientSession | None = None
        self._opening = asyncio.Lock()

    async def send(self, signal: str, route: Route, message: bytes) -> bytes:
        """What the collector answers, empty where that is no protobuf; raises Refused."""
        import aiohttp
        from yarl import URL

        del signal  # The route has its path.
        headers = {**route.headers, "content-type": "application/x-protobuf"}
        if route.gzip:
            headers["content-encoding"] = "gzip"
            message = await _packed(message)
        scheme = "https" if self._target.tls else "http"
        address = self._target.address
        host, port = ("localhost", None) if isinstance(address, str) else address
        place = host if port is None else with_port(host, port)
        url = URL(f"{scheme}://{place}{route.path}", encoded=True)
        # The name that is verified is not always the one that is resolved.
        if not any(name.lower() == "host" for name in headers):
            headers["host"] = self._target.authority
        bound = asyncio.timeout(route.timeout)
        try:
            async with bound:
                session = await self._opened()
                async with session.post(
                    url, data=message, headers=headers, allow_redirects=False, server_hostname=server_name(host)
                ) as answer:
                    if 200 <= answer.status < 300:
                        is_protobuf = answer.content_type == "application/x-protobuf"
                        return await answer.read() if is_protobuf else b""
                    body = (await answer.content.read(QUOTED)).decode(errors="replace").strip()
                    status = UNAVAILABLE if answer.status in _RETRYABLE else UNKNOWN
                    said = f"the collector answers with status {answer.status}{f': {body}' if body else ''}"
                    raise Refused(status, said)
        except (OSError, aiohttp.ClientError, ValueError) as error:
            if bound.expired():
                raise _late(route) from None
            raise Refused(UNAVAILABLE, f"the collector cannot be reached: {_reason(error)}") from None

    async def close(self) -> None:
        """End it."""
        if self._session is not None:
            await self._session.close()

    async def _opened(self) -> ClientSession:
        import aiohttp

        async with self._opening:
            if self._session is None:
                target, address = self._target, self._target.address
                tls = await asyncio.to_thread(_tls, target) if target.tls else True
                connector: aiohttp.BaseConnector
                if isinstance(address, str):
                    connector = aiohttp.UnixConnector(address)
                else:
                    connector = aiohttp.TCPConnector(ssl=tls)
                self._session = aiohttp.ClientSession(
                    connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=True
                )
            return self._session


async def _packed(message: bytes) -> bytes:
    if len(message) < _LARGE:
        return gzip.compress(message, 1)
    return await asyncio.to_thread(gzip.compress, message, 1)


async def _resolved(address: tuple[str, int]) -> list[tuple[str, int]]:
    async with asyncio.timeout(_RESOLVE_SECONDS):
        found = await asyncio.get_running_loop().getaddrinfo(*address, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((address_text(info[4]), address[1]) for info in found))


def _tls(target: Target) -> ssl.SSLContext:
    """Reads files: each connection has them as they are then. Raises OSError (ssl.SSLError is), NoTrustAnchor."""
    try:
        context = client_context(read_anchors_file(target.certificate) if target.certificate else None)
    except OSError as error:
        raise OSError(f"its CA {target.certificate} cannot be read: {_strerror(error)}") from None
    if target.client_certificate:
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(target.client_certificate, target.client_key, password="")
        except OSError as error:
            names = " and ".join(filter(None, (target.client_certificate, target.client_key)))
            raise OSError(f"the client certificate of {names} cannot be read: {_strerror(error)}") from None
    return context


def _strerror(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)


def _late(route: Route) -> Refused:
    return Refused(DEADLINE_EXCEEDED, f"the collector did not answer within {route.timeout:g} s")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "nothing answers in time"
    cause = getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {(cause.reason or str(cause)).lower().replace('_', ' ')}"
    if isinstance(cause, socket.gaierror):
        return f"its name has no address: {cause.strerror}"
    code = getattr(cause, "errno", None)
    return os.strerror(code) if isinstance(code, int) and code > 0 else str(cause) or type(cause).__name__
