"""Server of the socket to which Envoy's Prometheus listener forwards scrapes (Kuma's "metrics hijacker", 2.8 to 2.14).

A path that begins with ``/meshmetric`` is a scrape by MeshMetric policies, with profiles and labels. Any other path is
a scrape without a policy, as before MeshMetric: clusters of a service are summed, and Envoy receives the query.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from msgspec import Struct, field

from kumadp.addresses import request_target, with_port
from kumadp.exposition.names import DEFAULT_SCHEME
from kumadp.exposition.reader import ExpositionReader, Piece
from kumadp.host.net.serve import bind_unix, serve
from kumadp.metrics.clusters import ClusterMerger
from kumadp.metrics.formats import (
    CONTENT_TYPES,
    TEXT_TYPE,
    Format,
    FormatConverter,
    accept_for_sources,
    choose,
    escaping_of,
)
from kumadp.metrics.labels import Labels
from kumadp.metrics.profiles import Selection, SelectionSpec
from kumadp.metrics.scrape import (
    BufferedSource,
    ExpositionWriter,
    SourceResult,
    StreamedSource,
    write_buffered,
    write_results,
)
from kumadp.metrics.sources import ScrapeTarget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from aiohttp import web

    from kumadp.host.net.connection_limit import ConnectionLimits
    from kumadp.host.net.ports import BindAddress

log = logging.getLogger("kumadp.metrics")

POLICY = "/meshmetric"
TIMEOUT_HEADER = "X-Prometheus-Scrape-Timeout-Seconds"
_FORWARDED = ("User-Agent", TIMEOUT_HEADER)
# If the scraper sends no timeout (seconds): Prometheus' own default.
DEADLINE = 10.0
# Concurrent scrapes: each may use as much memory as the limit of a source allows.
_MAX_SCRAPES = 32
# How long the response waits for the formats of all sources, which decide on its own format (seconds).
_FORMATS_TIMEOUT = 1.0
_OWN = (b"kumadp_", b"kuma_dp_dns_")
_COREDNS = (b"coredns_",)


async def _no_metrics() -> tuple[bytes, str]:
    return b"", TEXT_TYPE


class ScrapedApplication(Struct, frozen=True):
    """An application whose metrics are scraped at ``host``, a name or an IP address."""

    name: str
    host: str
    port: int
    path: str


class ScrapePolicy(Struct, frozen=True):
    """The merged MeshMetric policies; ``used_only`` excludes metrics of Envoy that were never updated."""

    applications: tuple[ScrapedApplication, ...]
    selection: Selection
    labels: Mapping[str, str]
    used_only: bool = True


class SourceLocator(Struct, frozen=True):
    """Functions that return the current sources; each is called at every scrape.

    ``applications``: those for scrapes without a policy. ``envoy``: host and port of its admin, or the path of its
    socket, None if there is none; ``coredns``: address of its metrics. ``own``: kumadp's own exposition, and its
    content type. ``labels``: those that a data plane adds if it has no policy. ``limit``: maximum size of a source in
    bytes.
    """

    applications: Callable[[], tuple[ScrapedApplication, ...]] = tuple
    envoy: Callable[[], tuple[str, int] | str | None] = lambda: None
    coredns: Callable[[], BindAddress | None] = lambda: None
    own: Callable[[], Awaitable[tuple[bytes, str]]] = _no_metrics
    labels: Callable[[], Mapping[str, str]] = dict
    sourced: bool = False
    limit: int = 16 << 20


class MetricsServer:
    """Serves scrapes. The constructor binds the socket (raises WorkDirError).

    ``set_warning`` is called with the name of a source and a text, empty when the source is well again.
    """

    name = "metrics"

    def __init__(
        self,
        path: Path,
        locator: SourceLocator,
        *,
        set_warning: Callable[[str, str], None],
        connections: ConnectionLimits | None = None,
    ) -> None:
        self._connections = connections
        self._socket = bind_unix(path)
        self._locator = locator
        self._set_warning = set_warning
        self._policy: ScrapePolicy | None = None
        self._results: list[SourceResult] = []
        self._warned: set[str] = set()

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled."""
        await serve(
            self._respond,
            self._socket,
            up,
            name=self.name,
            connections=self._connections,
            most=_MAX_SCRAPES,
            abandon=True,
        )

    @property
    def policy_labels(self) -> Mapping[str, str]:
        """Labels that policies add."""
        return self._policy.labels if self._policy is not None else {}

    def apply(self, policy: ScrapePolicy | None) -> None:
        """Use this policy from now on; None if there is none any more."""
        self._policy = policy

    async def read_pieces(self, seconds: float) -> AsyncIterator[tuple[str, Piece]]:
        """Return the pieces of a scrape by policy, in the text format, with their sources, within so many seconds."""
        deadline = asyncio.get_running_loop().time() + seconds
        envoy, buffered = self._sources("", {"Accept": TEXT_TYPE}, by_policy=True)
        labels = buffered[0].labels
        tasks = [asyncio.create_task(source.read(deadline, asyncio.Event())) for source in buffered[1:]]
        try:
            async with envoy.open(deadline) as (_, pieces):
                async for piece in pieces:
                    yield envoy.target.name, piece
                    await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            buffered[0].pieces = await self._own()
            for source in buffered:
                converter = FormatConverter(source.format, Format.TEXT)
                for piece in source.pieces:
                    yield source.target.name, source.finish(converter.convert(piece))
                    await asyncio.sleep(0)
                source.pieces.clear()
            self._results = [envoy.result, *(source.result for source in buffered[1:])]
            own_pieces = _PieceList()
            await write_results(self._results, own_pieces, labels)
            for piece in own_pieces.pieces:
                yield buffered[0].target.name, piece
            self._update_warnings()
        finally:
            for task in tasks:
                task.cancel()

    def status(self) -> dict[str, object]:
        """Return the results of the last scrape as JSON types; ``took`` in seconds."""
        return {
            "policy": self._policy is not None,
            "sources": {
                result.name: {
                    "up": not result.failure,
                    "why": result.failure or None,
                    "took": round(result.seconds, 6),
                    "skipped": result.skipped,
                }
                for result in self._results
            },
        }

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        since = asyncio.get_running_loop().time()
        by_policy = request.path.startswith(POLICY)
        accept = ",".join(request.headers.getall("Accept", ()))
        sent = {name: request.headers[name] for name in _FORWARDED if request.headers.get(name)}
        sent["Accept"] = TEXT_TYPE if by_policy else accept_for_sources(accept)
        deadline = since + source_seconds(request.headers.get(TIMEOUT_HEADER, ""))
        envoy, buffered = self._sources(request.rel_url.raw_query_string, sent, by_policy=by_policy)
        labels = buffered[0].labels
        formats_known = [asyncio.Event() for _ in buffered]
        tasks = [
            asyncio.create_task(source.read(deadline, event), name=f"scrape {source.target.name}")
            for source, event in zip(buffered[1:], formats_known[1:], strict=True)
        ]
        try:
            async with envoy.open(deadline) as (format_of_envoy, pieces):
                target_format = Format.TEXT
                if not by_policy and "openmetrics" in (accept or "openmetrics"):
                    await _all_set(formats_known[1:], min(deadline, since + _FORMATS_TIMEOUT))
                if not by_policy:
                    target_format = choose(accept, (format_of_envoy, *(source.format for source in buffered[1:])))
                compress = "gzip" in request.headers.get("Accept-Encoding", "")
                escaping = escaping_of(accept, target_format) or DEFAULT_SCHEME
                response = web.StreamResponse(headers={"content-type": CONTENT_TYPES[target_format]})
                if compress:
                    response.headers["content-encoding"] = "gzip"
                await response.prepare(request)
                output = ExpositionWriter(response.write, compress=compress)
                async for piece in pieces:
                    await output.put(piece)
            await asyncio.gather(*tasks)
            buffered[0].pieces = await self._own()
            await write_buffered(buffered, output, target_format, escaping)
            self._results = [envoy.result, *(source.result for source in buffered[1:])]
            await write_results(self._results, output, labels)
            await output.end(target_format)
            await response.write_eof()
            self._update_warnings()
            return response
        finally:
            for task in tasks:
                task.cancel()

    def _sources(
        self, query: str, sent: Mapping[str, str], *, by_policy: bool
    ) -> tuple[StreamedSource, list[BufferedSource]]:
        """Return Envoy, and the other sources; the first of those is kumadp itself, which is not read by HTTP."""
        locator, policy = self._locator, self._policy
        applications = policy.applications if by_policy and policy is not None else locator.applications()
        added = (policy.labels if policy is not None else locator.labels()) if by_policy else {}
        labels = Labels(added)
        buffered = [BufferedSource(ScrapeTarget("kumadp", ""), labels, sent, _OWN, Format.TEXT, rewritten=True)]
        names: set[str] = {"envoy", "coredns"}
        for app in applications:
            address = with_port(app.host, app.port)
            path = app.path if app.path.startswith("/") else f"/{app.path}"
            name = app.name if app.name and app.name not in names else f"{address}{path}"
            names.add(name)
            target = ScrapeTarget(name, f"http://{address}{request_target(path)}", "", locator.limit, locator.sourced)
            scope = {"otel_scope_name": app.name} if by_policy and app.name else {}
            named = Labels({**added, **scope}) if scope else labels
            buffered.append(BufferedSource(target, named, sent, rewritten=by_policy))
        if (coredns := locator.coredns()) is not None:
            target = ScrapeTarget("coredns", f"http://{coredns.host}:{coredns.port}/metrics", "", locator.limit)
            buffered.append(BufferedSource(target, labels, sent, _COREDNS))
        if by_policy:
            selection = policy.selection if policy is not None else _DEFAULT_SELECTION
            query = policy_query(used_only=policy is None or policy.used_only)
            envoy = StreamedSource(self._envoy(query), _PolicyTransform(selection, labels), sent)
        else:
            envoy = StreamedSource(self._envoy(legacy_query(query)), ClusterMerger(), sent)
        return envoy, buffered

    def _envoy(self, query: str) -> ScrapeTarget:
        admin = self._locator.envoy()
        if isinstance(admin, str):
            return ScrapeTarget("envoy", f"http://localhost/stats?{query}", admin)
        host, port = admin or ("127.0.0.1", 0)
        return ScrapeTarget("envoy", f"http://{with_port(host, port)}/stats?{query}")

    async def _own(self) -> list[Piece]:
        reader = ExpositionReader(checks=True)
        try:
            text, _ = await self._locator.own()
            pieces = [*reader.feed(text), *reader.end()]
        except Exception as error:
            # A failure of kumadp's own metrics must not affect the others.
            self._set_warning("kumadp", f"its own metrics are missing: {type(error).__name__}: {error}")
            return []
        self._set_warning("kumadp", "")
        return [piece for piece in pieces if piece.family.name.startswith(_OWN)]

    def _update_warnings(self) -> None:
        for result in self._results:
            self._set_warning(result.name, result.failure)
        # Clear the warnings of sources that were removed.
        for name in self._warned - {result.name for result in self._results}:
            self._set_warning(name, "")
        self._warned = {result.name for result in self._results if result.failure}


class _PieceList(Struct):
    """Collects pieces, instead of writing them."""

    pieces: list[Piece] = field(default_factory=list)

    async def put(self, piece: Piece) -> bool:
        self.pieces.append(piece)
        return True


class _PolicyTransform(Struct):
    """Applies a policy to Envoy's metrics."""

    selection: Selection
    labels: Labels
    skipped: int = 0

    def take(self, piece: Piece) -> Iterator[Piece]:
        selected = self.selection.select(piece)
        if selected is not None:
            yield self.labels.add(selected)

    def end(self) -> Iterator[Piece]:
        return iter(())


_DEFAULT_SELECTION = Selection(SelectionSpec())


async def _all_set(events: list[asyncio.Event], until: float) -> None:
    try:
        async with asyncio.timeout_at(until):
            for event in events:
                await event.wait()
    except TimeoutError:
        pass


def source_seconds(header: str) -> float:
    """Return the deadline of the sources: the scraper's timeout less the time for the response, else `DEADLINE`."""
    try:
        timeout = float(header)
    except ValueError:
        return DEADLINE
    if not math.isfinite(timeout) or timeout <= 0:
        return DEADLINE
    return timeout - min(0.1 * timeout, 1.0)


def legacy_query(query: str) -> str:
    """Return the scraper's query with the parameters for Prometheus' format, as Go encodes it (Kuma 2.8)."""
    scraper_pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    pairs = [*scraper_pairs, ("format", "prometheus"), ("text_readouts", "")]
    return urlencode(sorted(pairs, key=lambda pair: pair[0]), errors="surrogateescape")


def policy_query(*, used_only: bool) -> str:
    """Return the query for Envoy, which ignores the value of ``usedonly``; kuma-dp always sends it (2.8 to 2.14)."""
    return "format=prometheus&text_readouts=" + ("&usedonly=" if used_only else "")
