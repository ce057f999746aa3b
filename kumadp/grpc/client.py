"""A gRPC client's connection: to a numeric address, pinged, and closed so that the server notices at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from grpclib.config import Configuration
from grpclib.protocol import AbstractHandler
from h2.exceptions import H2Error

from kumadp.grpc.call import SHUTDOWN_SECONDS, Call, FrameProtocol, StreamEnded, configure
from kumadp.host.net.host_lookup import connect as connect_ip

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from grpclib.protocol import Connection, Stream

AGENT = "grpc-python-kumadp"
WINDOW = 16 << 20
CONNECT_SECONDS = 5.0
# How long sent bytes may stay unacknowledged before the kernel closes the connection.
UNACKNOWLEDGED_SECONDS = 30.0


class GrpcConnection:
    """A client's HTTP/2 connection."""

    def __init__(self, protocol: _ClientProtocol, authority: str, scheme: str) -> None:
        self._protocol = protocol
        self._authority = authority
        self._scheme = scheme

    async def call(self, path: str, metadata: Mapping[str, str], *, agent: str = AGENT) -> Call:
        """Open a stream. Raises StreamEnded if the connection is closed."""
        headers = [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", agent),
            *metadata.items(),
        ]
        connection: Connection = self._protocol.connection
        if connection.is_closing():
            raise StreamEnded(None, "the connection is closed")
        stream = connection.create_stream()
        try:
            release = await stream.send_request(headers, _processor=self._protocol.processor)
        except H2Error as error:
            raise StreamEnded(None, f"no stream could be opened: {type(error).__name__}") from None
        return Call(stream, release)

    async def close(self) -> None:
        """Close all streams and the connection so that the server notices at once: RST_STREAM, GOAWAY, then FIN."""
        connection: Connection = self._protocol.connection
        if not connection.is_closing():
            with contextlib.suppress(H2Error):
                connection._connection.close_connection()  # noqa: SLF001 - grpclib has no method for GOAWAY
            connection.flush()
        self._protocol.processor.close("closed by us")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                await self._protocol.handler.lost.wait()


class _ClientHandler(AbstractHandler):
    """The client's side of a connection: it accepts no streams."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def accept(self, stream: Stream, headers: object, release_stream: Callable[[], None]) -> None:  # noqa: ARG002
        release_stream()

    def cancel(self, stream: Stream) -> None:
        """Do nothing: the call has its own hook."""

    def close(self) -> None:
        """Do nothing: the calls have their own hooks."""


class _ClientProtocol(FrameProtocol):
    handler: _ClientHandler

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.handler.lost.set()


async def connect(
    address: tuple[str, int] | str,
    *,
    authority: str,
    tls: ssl.SSLContext | None,
    server_name: str,
    ping: tuple[float, float] | None,
    sock: socket.socket | None = None,
) -> GrpcConnection:
    """Return a connection to a numeric address, with its zone, or to the Unix socket at a path.

    It is pinged every ``ping[0]`` seconds, and closed without a reply within ``ping[1]``; None: no pings. It uses
    ``sock``, if given. Raises OSError (TimeoutError and ssl.SSLError are).
    """
    # Kuma closes the connection if two pings are less than 15 s apart (2.8 to 2.13).
    every, within = ping or (None, 20.0)
    config = Configuration(
        _keepalive_time=every,
        _keepalive_timeout=within,
        _http2_max_pings_without_data=0,
        _http2_min_sent_ping_interval_without_data=(every or 300.0) * 0.9,
        http2_connection_window_size=WINDOW,
        http2_stream_window_size=WINDOW,
    ).__for_client__()
    loop = asyncio.get_running_loop()
    if sock is None:
        ip = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else ip, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNACKNOWLEDGED_SECONDS * 1000))
        async with asyncio.timeout(CONNECT_SECONDS):
            if isinstance(address, str):
                await loop.sock_connect(sock, address)
            else:
                await connect_ip(sock, *address)
            if tls is not None:
                tls.set_alpn_protocols(["h2"])
            _, protocol = await loop.create_connection(
                lambda: _ClientProtocol(_ClientHandler(), config, configure(client=True)),
                sock=sock,
                ssl=tls,
                server_hostname=server_name if tls is not None else None,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS if tls is not None else None,
            )
    except BaseException:
        sock.close()
        raise
    return GrpcConnection(protocol, authority, "http" if tls is None else "https")
