"""A collector of OpenTelemetry: the official protocol's own gRPC services, and OTLP over HTTP."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from kumadp import addresses

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

MESSAGES: dict[str, Any] = {
    "traces": trace_service_pb2.ExportTraceServiceRequest,
    "logs": logs_service_pb2.ExportLogsServiceRequest,
    "metrics": metrics_service_pb2.ExportMetricsServiceRequest,
}
ANSWERS: dict[str, Any] = {
    "traces": trace_service_pb2.ExportTraceServiceResponse,
    "logs": logs_service_pb2.ExportLogsServiceResponse,
    "metrics": metrics_service_pb2.ExportMetricsServiceResponse,
}
STUBS: dict[str, Any] = {
    "traces": trace_service_pb2_grpc.TraceServiceStub,
    "logs": logs_service_pb2_grpc.LogsServiceStub,
    "metrics": metrics_service_pb2_grpc.MetricsServiceStub,
}
_ADD: dict[str, Any] = {
    "traces": trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
    "logs": logs_service_pb2_grpc.add_LogsServiceServicer_to_server,
    "metrics": metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server,
}


@dataclass(frozen=True)
class Export:
    """One message that came, its headers in lower case."""

    signal: str
    message: Any
    headers: dict[str, str]


class Collector:
    """Keeps what comes. ``refuses``: it answers with this status and text; ``held``: it waits for that event first."""

    def __init__(self) -> None:
        self.exports: list[Export] = []
        self.refuses: tuple[Any, str] | None = None
        self.held: threading.Event | None = None
        self.requests = 0

    def take(self, signal: str, message: Any, headers: dict[str, str]) -> None:
        self.requests += 1
        if self.held is not None:
            self.held.wait(60)
        if self.refuses is None:
            self.exports.append(Export(signal, message, headers))

    def of(self, signal: str) -> list[Export]:
        return [export for export in self.exports if export.signal == signal]

    def points(self, name: str) -> list[Any]:
        """Metrics of this name, the newest last, each with its attributes as ``(metric, point, attributes, scope)``."""
        points = []
        for export in self.of("metrics"):
            for resource in export.message.resource_metrics:
                for scoped in resource.scope_metrics:
                    for metric in scoped.metrics:
                        if metric.name != name:
                            continue
                        data = getattr(metric, metric.WhichOneof("data"))
                        for point in data.data_points:
                            attributes = {attribute.key: attribute.value.string_value for attribute in point.attributes}
                            points.append((metric, point, attributes, scoped.scope.name))
        return points


class _Service:
    def __init__(self, collector: Collector, signal: str) -> None:
        self._collector, self._signal = collector, signal

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol names it
        self._collector.take(self._signal, request, dict(context.invocation_metadata()))
        if self._collector.refuses is not None:
            context.abort(*self._collector.refuses)
        answer = ANSWERS[self._signal]()
        answer.partial_success.error_message = "taken"
        return answer


@contextlib.contextmanager
def grpc_collector(
    at: str, collector: Collector | None = None, credentials: grpc.ServerCredentials | None = None
) -> Iterator[tuple[Collector, int]]:
    """One at an address of gRPC's, as unix:/path or 127.0.0.1:0; and its port."""
    target = collector or Collector()
    pool = ThreadPoolExecutor(8)
    server = grpc.server(pool)
    for signal, add in _ADD.items():
        add(_Service(target, signal), server)
    port = server.add_secure_port(at, credentials) if credentials is not None else server.add_insecure_port(at)
    server.start()
    try:
        yield target, port
    finally:
        if target.held is not None:
            target.held.set()
        server.stop(0).wait()
        pool.shutdown()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    collector: Collector


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        headers[":path"] = self.path
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        signal = self.path.rpartition("/")[2]
        message = MESSAGES[signal if signal in MESSAGES else "traces"].FromString(body)
        self.server.collector.take(signal, message, headers)
        status, text = self.server.collector.refuses or (200, "")
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        pass


@contextlib.contextmanager
def http_collector(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[tuple[Collector, int]]:
    """One over HTTP or HTTPS, on loopback unless an address is given; and its port."""
    _Http.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = _Http(addresses.socket_address(host, 0), _Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.collector = Collector()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.collector, int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def message(signal: str, size: int = 10) -> Any:
    """One of a signal, with some text of this size in it."""
    filled = MESSAGES[signal]()
    resource = {"traces": "resource_spans", "logs": "resource_logs", "metrics": "resource_metrics"}[signal]
    getattr(filled, resource).add().schema_url = "x" * size
    return filled


@contextlib.contextmanager
def client(path: Path) -> Iterator[dict[str, Any]]:
    """What an Envoy or an SDK has: ``Export`` of each signal, at a Unix socket."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        yield {signal: stub(channel).Export for signal, stub in STUBS.items()}
