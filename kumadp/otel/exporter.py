"""OpenTelemetry's own exporter of metrics, OTLP over gRPC, for one Unix socket (extra ``kumadp[otel]``).

Imported with the first push, in its thread: the import takes 0.25 s and 19 MB, most of it for gRPC and protobuf.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

# Otherwise gRPC's core writes to stderr, and hooks into every fork.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from grpc import Compression
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from kumadp.host.log.secrets import redact
from kumadp.otel.export_types import ExportFailed
from kumadp.otel.metric_mapper import MetricMapper, ScopedPiece

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kumadp.otel.export_types import CompressedPiece, ExportOptions

_SDK = logging.getLogger("opentelemetry")
# Its filter drops a message that repeats within a minute, even if another exporter logs it.
logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").filters.clear()
_MAX_FAILURE_TEXT = 1024
# With many metrics a push computes for seconds, and the event loop waits up to this long for its turn (Python's default
# is ten times as much).
sys.setswitchinterval(0.0005)
# Exempt the imported modules from garbage collection. A push creates points by the thousand, and each full collection
# stopped the loop for 100 ms.
gc.freeze()


class Exporter:
    """Pushes to the socket at ``path``. Its methods block; `close`, called in another thread, interrupts them."""

    def __init__(self, path: str, options: ExportOptions) -> None:
        _SDK.propagate = False
        own = Resource({**_sdk_attributes(), **({"service.name": options.service} if options.service else {})})
        # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME take precedence.
        self._resource = own.merge(OTELResourceDetector().detect())
        self._exporter = OTLPMetricExporter(
            endpoint=f"unix://{path}",
            insecure=True,
            headers={name.lower(): value for name, value in options.headers.items()},
            timeout=options.timeout,
            compression=Compression.Gzip if options.gzip else Compression.NoCompression,
        )

    def push(
        self, pieces: Iterable[CompressedPiece], within: float, attribute_names: Mapping[str, str] | None = None
    ) -> int:
        """Push all pieces within so many seconds; return the number of messages. Raises ExportFailed.

        ``attribute_names``: as in `ExportOptions`.
        """
        until = time.monotonic() + within
        mapper = MetricMapper(self._resource, time.time_ns(), attribute_names or {})
        number = 0
        with _captured_log() as captured:
            for message in mapper.messages(ScopedPiece(piece.scope, piece.piece) for piece in pieces):
                if time.monotonic() > until:
                    raise ExportFailed(f"not all metrics were accepted within {within:g} s")
                if self._exporter.export(message) is not MetricExportResult.SUCCESS:
                    raise ExportFailed(captured.last or "the metrics were not accepted")
                number += 1
        return number

    def close(self) -> None:
        """Push no more, and interrupt the push under way."""
        with _captured_log():
            self._exporter.shutdown()


def _sdk_attributes() -> dict[str, Any]:
    """What every SDK reports of itself, as kuma-dp's does (OpenTelemetry's semantic conventions)."""
    attributes = Resource.create().attributes
    return {name: value for name, value in attributes.items() if name.startswith("telemetry.sdk.")}


class _LastMessage(logging.Handler):
    """Captures this thread's last log message of the SDK, which reports the reason of a failure only there."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.last = redact(" ".join(record.getMessage().split()))[:_MAX_FAILURE_TEXT]


@contextlib.contextmanager
def _captured_log() -> Iterator[_LastMessage]:
    handler = _LastMessage()
    _SDK.addHandler(handler)
    try:
        yield handler
    finally:
        _SDK.removeHandler(handler)
