"""OpenTelemetry's own exporter of metrics, OTLP by gRPC, for one Unix socket (extra ``kumadp[otel]``).

Imported with the first push, in its thread: 0.25 s and 19 MB, most of it gRPC's and protobuf's.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

# gRPC's core writes to stderr by itself, and hooks into every fork.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from grpc import Compression
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from kumadp.host.log.secrets import redact
from kumadp.otel.export_types import ExportFailed
from kumadp.otel.otlp import Mapper, Said

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kumadp.otel.export_types import CompressedPiece, ExportOptions

_SDK = logging.getLogger("opentelemetry")
# It says nothing twice in a minute, whoever of several it is.
logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").filters.clear()
_LONGEST = 1024
# A push computes for seconds where metrics are many, and the loop has to wait for its turn as long as this (Python's
# own value is ten times as much).
sys.setswitchinterval(0.0005)
# What was imported stays. Points are made by the thousand, and each time Python looked for garbage among all there is
# the loop stood still for 100 ms.
gc.freeze()


class Exporter:
    """Pushes to the socket at ``path``. Its methods block; `close`, from another thread, ends what they wait for."""

    def __init__(self, path: str, options: ExportOptions) -> None:
        _SDK.propagate = False
        own = Resource({"service.name": options.service} if options.service else {})
        # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME go before.
        self._resource = own.merge(OTELResourceDetector().detect())
        self._exporter = OTLPMetricExporter(
            endpoint=f"unix://{path}",
            insecure=True,
            headers={name.lower(): value for name, value in options.headers.items()},
            timeout=options.timeout,
            compression=Compression.Gzip if options.gzip else Compression.NoCompression,
        )

    def push(self, kept: Iterable[CompressedPiece], within: float) -> int:
        """Push all of it within so many seconds; how many messages it took. Raises ExportFailed."""
        until = time.monotonic() + within
        mapper = Mapper(self._resource, time.time_ns())
        number = 0
        with _heard() as said:
            for message in mapper.messages(Said(one.scope, one.piece) for one in kept):
                if time.monotonic() > until:
                    raise ExportFailed(f"not all of it was taken within {within:g} s")
                if self._exporter.export(message) is not MetricExportResult.SUCCESS:
                    raise ExportFailed(said.last or "it was not taken")
                number += 1
        return number

    def close(self) -> None:
        """Push no more."""
        with _heard():
            self._exporter.shutdown()


class _Heard(logging.Handler):
    """The SDK says why it failed to its log alone."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.last = redact(" ".join(record.getMessage().split()))[:_LONGEST]


@contextlib.contextmanager
def _heard() -> Iterator[_Heard]:
    handler = _Heard()
    _SDK.addHandler(handler)
    try:
        yield handler
    finally:
        _SDK.removeHandler(handler)
