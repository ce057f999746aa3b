"""The socket that Envoy's Prometheus listener leads to (Kuma's "metrics hijacker", 2.8 to 2.14).

A path that begins with ``/meshmetric`` is asked for MeshMetric policies: profiles and labels. Any other is the way from
before them: clusters of one service are summed, and the query goes on to Envoy.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from kumadp.addresses import request_target
from kumadp.exposition.names import DEFAULT
from kumadp.exposition.reader import ExpositionReader, Piece
from kumadp.host.net.serve import bind_unix, serve
from kumadp.metrics.formats import (
    CONTENT_TYPES,
    TEXT_TYPE,
    Converter,
    Format,
    accept_for_sources,
    choose,
    escaping_of,
)
from kumadp.metrics.labels import Labels
from kumadp.metrics.merge import Clusters
from kumadp.metrics.profiles import Selection, Wanted
from kumadp.metrics.scrape import Live, Other, Output, Result, write_others, write_results
from kumadp.metrics.sources import Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from aiohttp import web

    from kumadp.host.net.ports import BindAddress

log = logging.getLogger("kumadp.metrics")

POLICY = "/meshmetric"
TIMEOUT_HEADER = "X-Prometheus-Scrape-Timeout-Seconds"
_FORWARDED = ("User-Agent", TIMEOUT_HEADER)
# Without a word of the scraper (seconds): Prometheus' own default.
DEADLINE = 10.0
# Scrapes at a time: each may hold as much as the limit of a source allows.
_MOST_SCRAPES = 32
# How long the formats of all are waited for before the answer begins (seconds), as they decide on its format.
_FORMATS = 1.0
_OWN = (b"kumadp_", b"kuma_dp_dns_")
_COREDNS = (b"coredns_",)


async def _nothing() -> tuple[bytes, str]:
    return b"", TEXT_TYPE


@dataclass(frozen=True, slots=True)
class Application:
    """An application whose metrics are scraped at ``host``, a name or an IP address."""

    name: str
    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What MeshMetric policies say, made ready: ``used_only`` leaves out what Envoy has never counted."""

    applications: tuple[Application, ...]
    selection: Selection
    labels: Mapping[str, str]
    used_only: bool = True


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the sources are now, asked at each scrape.

    ``applications``: those of the way from before MeshMetric. ``envoy`` gives host and port of its admin, or the path
    of its socket, None where there is none; ``coredns`` where its metrics are. ``own`` is kumadp's own exposition, and
    its content type. ``labels``: those that a data plane adds itself where no policy has come.
    """

    applications: Callable[[], tuple[Application, ...]] = tuple
    envoy: Callable[[], tuple[str, int] | str | None] = lambda: None
    coredns: Callable[[], BindAddress | None] = lambda: None
    own: Callable[[], Awaitable[tuple[bytes, str]]] = _nothing
    labels: Callable[[], Mapping[str, str]] = dict
    sourced: bool = False
    limit: int = 16 << 20


class MetricsServer:
    """Answers scrapes. The socket is bound when this is made (WorkDirError).

    ``concern`` hears what is wrong with a source, and "" when nothing is any more.
    """

    name = "metrics"

    def __init__(self, path: Path, around: Surroundings, *, concern: Callable[[str, str], None]) -> None:
        self._socket = bind_unix(path)
        self._around = around
        self._concern = concern
        self._policy: Policy | None = None
        self._results: list[Result] = []
        self._told: set[str] = set()

    async def run(self, up: Callable[[], None]) -> None:
        """Serve until cancelled."""
        await serve(self._answer, self._socket, up, name=self.name, most=_MOST_SCRAPES, abandon=True)

    def apply(self, policy: Policy | None) -> None:
        """Answer by this policy from now on; None: there is none any more."""
        self._policy = policy

    async def said(self, seconds: float) -> AsyncIterator[tuple[str, Piece]]:
        """All that a scrape by policy has, in the text format, each with its source; within so many seconds."""
        deadline = asyncio.get_running_loop().time() + seconds
        live, others = self._sources("", {"Accept": TEXT_TYPE}, by_policy=True)
        labels = others[0].labels
        reading = [asyncio.create_task(other.read(deadline, asyncio.Event())) for other in others[1:]]
        try:
            async with live.reading(deadline) as (_, pieces):
                async for piece in pieces:
                    yield live.target.name, piece
                    await asyncio.sleep(0)
            await asyncio.gather(*reading)
            others[0].pieces = await self._own()
            for other in others:
                converter = Converter(other.format, Format.TEXT)
                for piece in other.pieces:
                    yield other.target.name, other.changed(converter.convert(piece))
                    await asyncio.sleep(0)
                other.pieces.clear()
            self._results = [live.result, *(other.result for other in others[1:])]
            kept = _Pieces()
            await write_results(self._results, kept, labels)
            for piece in kept.pieces:
                yield others[0].target.name, piece
            self._tell()
        finally:
            for task in reading:
                task.cancel()

    def status(self) -> dict[str, object]:
        """Of the last scrape, JSON types; ``took`` in seconds."""
        return {
            "policy": self._policy is not None,
            "sources": {
                one.name: {
                    "up": not one.why,
                    "why": one.why or None,
                    "took": round(one.took, 6),
                    "skipped": one.skipped,
                }
                for one in self._results
            },
        }

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        since = asyncio.get_running_loop().time()
        by_policy = request.path.startswith(POLICY)
        accept = ",".join(request.headers.getall("Accept", ()))
        sent = {name: request.headers[name] for name in _FORWARDED if request.headers.get(name)}
        sent["Accept"] = TEXT_TYPE if by_policy else accept_for_sources(accept)
        deadline = since + allowed(request.headers.get(TIMEOUT_HEADER, ""))
        live, others = self._sources(request.rel_url.raw_query_string, sent, by_policy=by_policy)
        labels = others[0].labels
        known = [asyncio.Event() for _ in others]
        reading = [
            asyncio.create_task(other.read(deadline, event), name=f"scrape {other.target.name}")
            for other, event in zip(others[1:], known[1:], strict=True)
        ]
        try:
            async with live.reading(deadline) as (format_of_envoy, pieces):
                form = Format.TEXT
                if not by_policy and "openmetrics" in (accept or "openmetrics"):
                    await _all_set(known[1:], min(deadline, since + _FORMATS))
                if not by_policy:
                    form = choose(accept, (format_of_envoy, *(other.format for other in others[1:])))
                packed = "gzip" in request.headers.get("Accept-Encoding", "")
                escaping = escaping_of(accept, form) or DEFAULT
                response = web.StreamResponse(headers={"content-type": CONTENT_TYPES[form]})
                if packed:
                    response.headers["content-encoding"] = "gzip"
                await response.prepare(request)
                output = Output(response.write, packed=packed)
                async for piece in pieces:
                    await output.put(piece)
            await asyncio.gather(*reading)
            others[0].pieces = await self._own()
            await write_others(others, output, form, escaping)
            self._results = [live.result, *(other.result for other in others[1:])]
            await write_results(self._results, output, labels)
            await output.end(form)
            await response.write_eof()
            self._tell()
            return response
        finally:
            for task in reading:
                task.cancel()

    def _sources(self, query: str, sent: Mapping[str, str], *, by_policy: bool) -> tuple[Live, list[Other]]:
        """Envoy; and the others, of which the first is kumadp itself, which is not asked."""
        around, policy = self._around, self._policy
        applications = policy.applications if by_policy and policy is not None else around.applications()
        added = (policy.labels if policy is not None else around.labels()) if by_policy else {}
        labels = Labels(added)
        others = [Other(Target("kumadp", ""), labels, sent, _OWN, Format.TEXT, rewritten=True)]
        names: set[str] = {"envoy", "coredns"}
        for app in applications:
            place = f"[{app.host}]:{app.port}" if ":" in app.host else f"{app.host}:{app.port}"
            path = app.path if app.path.startswith("/") else f"/{app.path}"
            name = app.name if app.name and app.name not in names else f"{place}{path}"
            names.add(name)
            target = Target(name, f"http://{place}{request_target(path)}", "", around.limit, around.sourced)
            scope = {"otel_scope_name": app.name} if by_policy and app.name else {}
            named = Labels({**added, **scope}) if scope else labels
            others.append(Other(target, named, sent, rewritten=by_policy))
        if (at := around.coredns()) is not None:
            target = Target("coredns", f"http://{at.host}:{at.port}/metrics", "", around.limit)
            others.append(Other(target, labels, sent, _COREDNS))
        if by_policy:
            selection = policy.selection if policy is not None else _DEFAULT
            wanted = policy_query(used_only=policy is None or policy.used_only)
            live = Live(self._envoy(wanted), _ByPolicy(selection, labels), sent)
        else:
            live = Live(self._envoy(legacy_query(query)), Clusters(), sent)
        return live, others

    def _envoy(self, query: str) -> Target:
        admin = self._around.envoy()
        if isinstance(admin, str):
            return Target("envoy", f"http://localhost/stats?{query}", admin)
        host, port = admin or ("127.0.0.1", 0)
        return Target("envoy", f"http://{f'[{host}]' if ':' in host else host}:{port}/stats?{query}")

    async def _own(self) -> list[Piece]:
        reader = ExpositionReader(checks=True)
        try:
            text, _ = await self._around.own()
            pieces = [*reader.feed(text), *reader.end()]
        except Exception as error:
            # What kumadp says of itself must not cost what others say.
            self._concern("kumadp", f"its own metrics are missing: {type(error).__name__}: {error}")
            return []
        self._concern("kumadp", "")
        return [piece for piece in pieces if piece.family.name.startswith(_OWN)]

    def _tell(self) -> None:
        for result in self._results:
            self._concern(result.name, result.why)
        # Who is no source any more has nothing wrong with it.
        for name in self._told - {result.name for result in self._results}:
            self._concern(name, "")
        self._told = {result.name for result in self._results if result.why}


@dataclass(slots=True)
class _Pieces:
    """Takes pieces in place of an output."""

    pieces: list[Piece] = field(default_factory=list)

    async def put(self, piece: Piece) -> bool:
        self.pieces.append(piece)
        return True


@dataclass(slots=True)
class _ByPolicy:
    """What a policy does to Envoy's metrics."""

    selection: Selection
    labels: Labels
    skipped: int = field(default=0, init=False)

    def take(self, piece: Piece) -> Iterator[Piece]:
        selected = self.selection.select(piece)
        if selected is not None:
            yield self.labels.add(selected)

    def end(self) -> Iterator[Piece]:
        return iter(())


_DEFAULT = Selection(Wanted())


async def _all_set(events: list[asyncio.Event], until: float) -> None:
    try:
        async with asyncio.timeout_at(until):
            for event in events:
                await event.wait()
    except TimeoutError:
        pass


def allowed(header: str) -> float:
    """Seconds for all sources: what the scraper says it waits, less what the way back takes; else `DEADLINE`."""
    try:
        timeout = float(header)
    except ValueError:
        return DEADLINE
    if not math.isfinite(timeout) or timeout <= 0:
        return DEADLINE
    return timeout - min(0.1 * timeout, 1.0)


def legacy_query(query: str) -> str:
    """The scraper's query and what makes Envoy answer in Prometheus' format, as Go encodes it (Kuma 2.8)."""
    asked = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    pairs = [*asked, ("format", "prometheus"), ("text_readouts", "")]
    return urlencode(sorted(pairs, key=lambda pair: pair[0]), errors="surrogateescape")


def policy_query(*, used_only: bool) -> str:
    """Envoy looks whether ``usedonly`` is there, whatever its value; kuma-dp always says it (2.8 to 2.14)."""
    return "format=prometheus&text_readouts=" + ("&usedonly=" if used_only else "")
