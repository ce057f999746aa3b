"""OpenTelemetry in a run: metrics pushed to the backends of MeshMetric policies, and Kuma 2.14's pipe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kumadp.core.part import Part
from kumadp.host.log.secrets import register
from kumadp.otel.environment import read_environment, timeout_or_default
from kumadp.otel.offer import is_installed
from kumadp.resources.dynconf_bodies import MESH_METRIC, OTEL
from kumadp.settings.values import BadValue, parse_duration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from kumadp.core.context import Context
    from kumadp.exposition.reader import Piece
    from kumadp.otel.export_types import ExportOptions
    from kumadp.otel.pipe import Pipe
    from kumadp.otel.push import Pusher
    from kumadp.resources import dynconf_bodies
    from kumadp.resources.dynconf_bodies import BodyHandler

log = logging.getLogger("kumadp.otel")

OPEN_TELEMETRY = "OpenTelemetry"
EXTRA = "install kumadp with its extra: pip install 'kumadp[otel]'"
# How long metrics are pushed once more at the stop, where the drain time is not shorter (seconds).
_FLUSH = 3.0
# How often metrics are pushed where nothing says so, as in Kuma, and at most (seconds).
PERIOD = 60.0
_SHORTEST = 0.1
# An export that takes longer has failed, where no OTEL_ variable says so (OpenTelemetry's specification; seconds).
_TIMEOUT = 10.0


class OtelPart(Part):
    """Pushes metrics, and serves the pipe.

    ``exposition`` is what is pushed; ``service`` names the data plane to collectors. ``attribute_names``: as in
    `ExportOptions`.
    """

    name = "otel"

    def __init__(
        self,
        context: Context,
        exposition: Callable[[float], AsyncIterator[tuple[str, Piece]]],
        service: Callable[[], str],
        attribute_names: Callable[[], Mapping[str, str]],
    ) -> None:
        self._context = context
        self._service = service
        self._attribute_names = attribute_names
        self._environment = read_environment(context.environ)
        for secret in self._environment.secrets():
            register(secret)
        self._installed = is_installed()
        self._direct: dict[str, float] = {}
        self._piped: dict[str, float] = {}
        self._exposition = exposition
        self._pusher: Pusher | None = None
        self._pipe: Pipe | None = None

    async def start(self) -> None:
        """Serve the pipe: it is there before Envoy, and after it, so that what Envoy sends at its end is passed on."""
        from kumadp.otel.pipe import Pipe

        context = self._context
        self._pipe = Pipe(context.work.sockets, self._set_pipe_warning, connections=context.status.connections)
        if context.settings.otel_pipe_enabled and not self._installed:
            log.info("Kuma 2.14's OpenTelemetry pipe is not announced; for it, %s", EXTRA)
        if context.settings.otel_pipe_enabled:
            context.stack.start(self._pipe, stop_deadline=_FLUSH + 2)

    def status(self) -> Mapping[str, object]:
        """Return the section ``otel``."""
        if self._pipe is None:
            return {}
        push = self._pusher.status() if self._pusher is not None else {}
        return {"otel": {"installed": self._installed, "push": push, "pipe": self._pipe.status()}}

    def handlers(self, metrics: BodyHandler) -> dict[str, tuple[BodyHandler, ...]]:
        """Owners of the bodies of dynamic configuration; ``metrics`` owns that of MeshMetric too."""
        owners: dict[str, tuple[BodyHandler, ...]] = {MESH_METRIC: (metrics, self.apply_metrics)}
        return {**owners, OTEL: (self.apply_pipe,)} if self._context.settings.otel_pipe_enabled else owners

    async def apply_metrics(self, body: dynconf_bodies.MeshMetricBody | None) -> None:
        """Push to the backends of MeshMetric policies; None: there are no policies (any more)."""
        backends = (body.observability.metrics.backends if body is not None else None) or ()
        wanted = [one.open_telemetry for one in backends if one.type == OPEN_TELEMETRY and one.open_telemetry]
        self._direct = {one.endpoint.removeprefix("unix://"): _period(one.refresh_interval) for one in wanted}
        self._push()

    async def apply_pipe(self, body: dynconf_bodies.OtelBody | None) -> None:
        """Serve the backends of the pipe. Raises WorkDirError where one cannot be served; the others are."""
        from kumadp.otel.backend_spec import BackendSpec
        from kumadp.otel.routes import routes, usable_for_metrics

        wanted = [
            BackendSpec(one.name, Path(one.socket_path), routes(one, self._environment))
            for one in (body.backends if body is not None else None) or ()
        ]
        pipe = self._pipe
        if pipe is None:
            return
        try:
            await pipe.apply(wanted)
        finally:
            self._piped = {
                one.socket_path: _period(one.metrics.refresh_interval)
                for one in (body.backends if body is not None else None) or ()
                if one.metrics is not None
                and usable_for_metrics(one.metrics)
                and pipe.sends(Path(one.socket_path), "metrics")
            }
            self._push()

    def _push(self) -> None:
        periods = {**self._direct, **self._piped}
        missing = bool(periods) and not self._installed
        self._context.status.set_warning(OPEN_TELEMETRY, f"metrics are not pushed; {EXTRA}" if missing else "")
        if missing or not (periods or self._pusher):
            return
        if self._pusher is None:
            self._pusher = self._make_pusher()
        self._pusher.apply(periods)

    def _make_pusher(self) -> Pusher:
        from kumadp.otel.push import Pusher

        flush = min(_FLUSH, self._context.settings.drain_time)
        pusher = Pusher(self._exposition, self._options, set_warning=self._set_push_warning, flush=flush)
        # Later than Envoy, so that it is left before Envoy, through which it pushes.
        self._context.stack.start(pusher, stop_deadline=flush + 1)
        return pusher

    def _options(self) -> ExportOptions:
        from kumadp.otel.export_types import ExportOptions

        shared, own = self._environment.shared, self._environment.metrics
        return ExportOptions(
            self._service(),
            own.headers or shared.headers,
            bool(shared.gzip if own.gzip is None else own.gzip),
            timeout_or_default(own.timeout, timeout_or_default(shared.timeout, _TIMEOUT)),
            self._attribute_names(),
        )

    def _set_push_warning(self, path: str, warning: str) -> None:
        self._context.status.set_warning(f"{OPEN_TELEMETRY} push to {Path(path).name}", warning)

    def _set_pipe_warning(self, backend: str, warning: str) -> None:
        self._context.status.set_warning(f"{OPEN_TELEMETRY} backend {backend}", warning)


def _period(text: str) -> float:
    """Return the seconds of a refresh interval; an invalid one is the default, as in Kuma."""
    try:
        seconds = parse_duration(text)
        return max(seconds, _SHORTEST) if seconds else PERIOD
    except BadValue:
        return PERIOD
