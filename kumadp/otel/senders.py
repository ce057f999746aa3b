"""Senders of OTLP messages, as raw bytes, to collectors: gRPC, or HTTP with protobuf bodies (OTLP 1.x)."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import ssl
from typing import TYPE_CHECKING, Protocol

from kumadp.addresses import server_name, with_port
from kumadp.grpc.call import OK, UNAVAILABLE, StreamEnded
from kumadp.grpc.client import connect
from kumadp.host.net.host_lookup import numeric_addresses
from kumadp.host.net.tls import client_context, read_anchors_file
from kumadp.otel.environment import HTTP

if TYPE_CHECKING:
    from aiohttp import ClientSession

    from kumadp.grpc.client import GrpcConnection
    from kumadp.otel.routes import Collector, Route

UNKNOWN, DEADLINE_EXCEEDED = 2, 4
# After these the sender may retry (OTLP's specification, "Retryable Response Codes").
_RETRYABLE = {429, 502, 503, 504}
# Length of a collector's error message that is quoted, in bytes (as in kuma-dp 2.14).
MAX_QUOTED = 1024
_SERVICES = {"traces": "trace", "logs": "logs", "metrics": "metrics"}
# Deadline for the resolution of a collector's name (seconds).
_RESOLVE_SECONDS = 5.0
# Messages of at least this size are compressed in a thread (bytes).
_LARGE = 64 << 10


def method(signal: str) -> str:
    """Return the gRPC path of a signal's Export (opentelemetry-proto, collector/*/v1)."""
    name = _SERVICES[signal]
    return f"/opentelemetry.proto.collector.{name}.v1.{name.capitalize()}Service/Export"


class ExportRejected(Exception):
    """The collector did not accept the message, or is unreachable; ``status`` is a gRPC code."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Sender(Protocol):
    """A connection to a collector, opened with the first message and reopened after it broke."""

    async def send(self, signal: str, route: Route, message: bytes) -> bytes:
        """Send a message; return the collector's response. Raises ExportRejected."""

    async def close(self) -> None:
        """Close the connection."""


def sender_for(collector: Collector) -> Sender:
    """Return a sender for the collector's protocol."""
    return HttpSender(collector) if collector.protocol == HTTP else GrpcSender(collector)


class GrpcSender:
    """gRPC over one connection."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._connection: GrpcConnection | None = None
        self._connect_lock = asyncio.Lock()

    async def send(self, signal: str, route: Route, message: bytes) -> bytes:
        """Send a message; return the collector's response. Raises ExportRejected."""
        headers = {name.lower(): value for name, value in route.headers.items()}
        if route.gzip:
            headers["grpc-encoding"] = "gzip"
            message = await _compress(message)
        timeout = asyncio.timeout(route.timeout)
        try:
            async with timeout:
                return await self._send(method(signal), headers, message, packed=route.gzip)
        except (OSError, ValueError) as error:
            if timeout.expired():
                raise _timed_out(route) from None
            raise ExportRejected(UNAVAILABLE, f"the collector is unreachable: {_reason(error)}") from None
        except StreamEnded as ended:
            text = ended.text.encode()[:MAX_QUOTED].decode(errors="replace")
            if ended.status is None:
                raise ExportRejected(UNAVAILABLE, f"the connection to the collector broke: {text}") from None
            raise ExportRejected(
                ended.status or UNKNOWN, f"the collector responded with status {ended.status}: {text}"
            ) from None

    async def close(self) -> None:
        """Close the connection."""
        await self._drop(self._connection)

    async def _send(self, path: str, headers: dict[str, str], message: bytes, *, packed: bool) -> bytes:
        connection = await self._connected()
        try:
            return await _exchange(connection, path, headers, message, packed=packed)
        except StreamEnded as ended:
            if ended.status is not None:
                raise
            # The connection had ended before it was used, as when a collector was restarted: retry once.
            await self._drop(connection)
        connection = await self._connected()
        try:
            return await _exchange(connection, path, headers, message, packed=packed)
        except StreamEnded as ended:
            if ended.status is None:
                await self._drop(connection)
            raise

    async def _connected(self) -> GrpcConnection:
        async with self._connect_lock:
            if self._connection is None:
                collector, address = self._collector, self._collector.address
                tls = await asyncio.to_thread(_tls, collector) if collector.tls else None
                name = "localhost" if isinstance(address, str) else server_name(address[0])
                failure: OSError | None = None
                for ip_address in [address] if isinstance(address, str) else await _resolved(address):
                    try:
                        # Collectors treat pings without calls as an attack (grpc-go's default policy).
                        self._connection = await connect(
                            ip_address, authority=collector.authority, tls=tls, server_name=name, ping=None
                        )
                        break
                    except OSError as error:
                        failure = error
                if self._connection is None:
                    raise failure or OSError("its name has no address")
            return self._connection

    async def _drop(self, connection: GrpcConnection | None) -> None:
        if connection is not None:
            if self._connection is connection:
                self._connection = None
            await connection.close()


async def _exchange(
    connection: GrpcConnection, path: str, headers: dict[str, str], message: bytes, *, packed: bool
) -> bytes:
    call = await connection.call(path, headers)
    try:
        await call.send(message, last=True, packed=packed)
        response = await call.receive(unpack=True)
        try:
            await call.receive(unpack=True)
        except StreamEnded as ended:
            if ended.status != OK:
                raise
        return response
    finally:
        call.close()


class HttpSender:
    """HTTP/1.1 with persistent connections."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._session: ClientSession | None = None
        self._session_lock = asyncio.Lock()

    async def send(self, signal: str, route: Route, message: bytes) -> bytes:
        """Send a message; return the response, empty if it is not protobuf. Raises ExportRejected."""
        import aiohttp
        from yarl import URL

        del signal  # It is part of the route's path.
        headers = {**route.headers, "content-type": "application/x-protobuf"}
        if route.gzip:
            headers["content-encoding"] = "gzip"
            message = await _compress(message)
        scheme = "https" if self._collector.tls else "http"
        address = self._collector.address
        host, port = ("localhost", None) if isinstance(address, str) else address
        authority = host if port is None else with_port(host, port)
        url = URL(f"{scheme}://{authority}{route.path}", encoded=True)
        # The name that is verified may differ from the one that is resolved.
        if not any(name.lower() == "host" for name in headers):
            headers["host"] = self._collector.authority
        timeout = asyncio.timeout(route.timeout)
        try:
            async with timeout:
                session = await self._opened()
                async with session.post(
                    url, data=message, headers=headers, allow_redirects=False, server_hostname=server_name(host)
                ) as response:
                    if 200 <= response.status < 300:
                        is_protobuf = response.content_type == "application/x-protobuf"
                        return await response.read() if is_protobuf else b""
                    body = (await response.content.read(MAX_QUOTED)).decode(errors="replace").strip()
                    status = UNAVAILABLE if response.status in _RETRYABLE else UNKNOWN
                    reason = f"the collector responded with status {response.status}{f': {body}' if body else ''}"
                    raise ExportRejected(status, reason)
        except (OSError, aiohttp.ClientError, ValueError) as error:
            if timeout.expired():
                raise _timed_out(route) from None
            raise ExportRejected(UNAVAILABLE, f"the collector is unreachable: {_reason(error)}") from None

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()

    async def _opened(self) -> ClientSession:
        import aiohttp

        async with self._session_lock:
            if self._session is None:
                collector, address = self._collector, self._collector.address
                tls = await asyncio.to_thread(_tls, collector) if collector.tls else True
                connector: aiohttp.BaseConnector
                if isinstance(address, str):
                    connector = aiohttp.UnixConnector(address)
                else:
                    connector = aiohttp.TCPConnector(ssl=tls)
                self._session = aiohttp.ClientSession(
                    connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=True
                )
            return self._session


async def _compress(message: bytes) -> bytes:
    if len(message) < _LARGE:
        return gzip.compress(message, 1)
    return await asyncio.to_thread(gzip.compress, message, 1)


async def _resolved(address: tuple[str, int]) -> list[tuple[str, int]]:
    async with asyncio.timeout(_RESOLVE_SECONDS):
        return [(ip_address, address[1]) for ip_address in await numeric_addresses(*address)]


def _tls(collector: Collector) -> ssl.SSLContext:
    """Return a TLS context from files, read for each connection. Raises OSError (also ssl.SSLError), NoTrustAnchor."""
    try:
        context = client_context(read_anchors_file(collector.certificate) if collector.certificate else None)
    except OSError as error:
        raise OSError(f"its CA {collector.certificate} cannot be read: {_strerror(error)}") from None
    if collector.client_certificate:
        try:
            # Without this argument OpenSSL prompts for a password on the terminal.
            context.load_cert_chain(collector.client_certificate, collector.client_key, password="")
        except OSError as error:
            names = " and ".join(filter(None, (collector.client_certificate, collector.client_key)))
            raise OSError(f"the client certificate of {names} cannot be read: {_strerror(error)}") from None
    return context


def _strerror(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return error.strerror or str(error)


def _timed_out(route: Route) -> ExportRejected:
    return ExportRejected(DEADLINE_EXCEEDED, f"the collector did not answer within {route.timeout:g} s")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    cause = getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {(cause.reason or str(cause)).lower().replace('_', ' ')}"
    if isinstance(cause, socket.gaierror):
        return f"its name has no address: {cause.strerror}"
    code = getattr(cause, "errno", None)
    return os.strerror(code) if isinstance(code, int) and code > 0 else str(cause) or type(cause).__name__
