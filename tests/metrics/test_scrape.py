"""Sources of a scrape read from in-memory responses, and the writer that merges them."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from typing import TYPE_CHECKING

import pytest

from kumadp.exposition.reader import MAX_PIECES, Family, Piece
from kumadp.metrics import scrape
from kumadp.metrics.clusters import ClusterMerger
from kumadp.metrics.formats import Format
from kumadp.metrics.labels import Labels
from kumadp.metrics.scrape import (
    BufferedSource,
    ExpositionWriter,
    SourceResult,
    StreamedSource,
    write_buffered,
    write_results,
)
from kumadp.metrics.sources import ScrapeTarget, SourceFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

APP = b"# TYPE a counter\na 1\n# TYPE b gauge\nb 2\n"


class Response:
    """Returns ``parts``, then raises ``error`` if there is one, or blocks if ``blocks``."""

    def __init__(
        self, *parts: bytes, form: Format = Format.TEXT, error: Exception | None = None, blocks: bool = False
    ) -> None:
        self.format = form
        self._parts = parts
        self._error = error
        self._blocks = blocks

    async def parts(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        if self._blocks:
            await asyncio.Event().wait()
        if self._error is not None:
            raise self._error


class Patch:
    """Replaces the HTTP client: `respond` sets the response of a source by its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.responses: dict[str, Response | Exception] = {}
        monkeypatch.setattr(scrape, "open_source", self._open)

    @contextlib.asynccontextmanager
    async def _open(self, target: ScrapeTarget, _headers: object) -> AsyncIterator[Response]:
        response = self.responses[target.name]
        if isinstance(response, Exception):
            raise response
        yield response

    async def read(
        self, response: Response | Exception, *, seconds: float = 5.0, only: tuple[bytes, ...] = ()
    ) -> BufferedSource:
        source = buffered(only=only)
        self.responses[source.target.name] = response
        known = asyncio.Event()
        await source.read(asyncio.get_running_loop().time() + seconds, known)
        assert known.is_set()
        return source


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> Patch:
    return Patch(monkeypatch)


def buffered(name: str = "app", only: tuple[bytes, ...] = ()) -> BufferedSource:
    return BufferedSource(ScrapeTarget(name, ""), Labels({}), {}, only)


def names(source: BufferedSource) -> list[bytes]:
    return [piece.family.name for piece in source.pieces]


async def test_a_source_is_read_completely(patch: Patch) -> None:
    source = await patch.read(Response(APP[:25], APP[25:]))
    assert names(source) == [b"a", b"b"]
    assert (source.format, source.result.failure, source.result.skipped) == (Format.TEXT, "", 0)


async def test_only_selected_families_are_kept(patch: Patch) -> None:
    assert names(await patch.read(Response(APP), only=(b"b",))) == [b"b"]


async def test_all_pieces_of_an_invalid_family_are_dropped(patch: Patch) -> None:
    source = await patch.read(Response(APP, b"# TYPE c gauge\nc 1\n", b"c one\n"))
    assert names(source) == [b"a", b"b"]
    assert (source.result.failure, source.result.skipped) == ("", 1)


@pytest.mark.parametrize(
    ("response", "failure"),
    [
        (SourceFailed("it is unreachable: Connection refused"), "it is unreachable: Connection refused"),
        (Response(APP, error=SourceFailed("its response broke off")), "its response broke off"),
        (Response(b"<html>\n"), "its response has no metrics"),
        (Response(b"x" * (2 << 20)), "a line is longer than 1 MB"),
        (Response(b"a 1\nb 1\n" * MAX_PIECES), "its families are not grouped, and come in too many pieces"),
        (Response(APP, error=ZeroDivisionError("a bug")), "ZeroDivisionError: a bug"),
    ],
)
async def test_a_failure_drops_all_pieces(patch: Patch, response: Response | Exception, failure: str) -> None:
    source = await patch.read(response)
    assert source.result.failure == failure
    assert (source.pieces, source.format) == ([], Format.UNKNOWN)


async def test_a_late_source_fails_at_the_deadline(patch: Patch) -> None:
    source = await patch.read(Response(APP, blocks=True), seconds=0.05)
    assert source.result.failure == "it did not respond in time"
    assert source.result.seconds >= 0.04
    assert source.pieces == []


async def streamed(patch: Patch, response: Response | Exception, seconds: float = 5.0) -> tuple[bytes, StreamedSource]:
    source = StreamedSource(ScrapeTarget("envoy", ""), ClusterMerger(), {})
    patch.responses["envoy"] = response
    async with source.open(asyncio.get_running_loop().time() + seconds) as (_, pieces):
        return b"".join([piece.samples async for piece in pieces]), source


async def test_a_streamed_source_returns_transformed_pieces(patch: Patch) -> None:
    text = b'c{envoy_cluster_name="b-0011223344556677"} 1\nc{envoy_cluster_name="b-1111223344556677"} 2\n'
    samples, source = await streamed(patch, Response(text))
    assert samples == b'c{envoy_cluster_name="b",kuma_io_mesh_traffic="true"} 3\n'
    assert source.result.failure == ""


@pytest.mark.parametrize(
    ("response", "samples", "failure"),
    [
        (SourceFailed("it is unreachable: no"), b"", "it is unreachable: no"),
        (Response(b"a 1\n", error=SourceFailed("its response broke off")), b"a 1\n", "its response broke off"),
        (Response(b"a 1\n", blocks=True), b"a 1\n", "its response did not end in time"),
    ],
)
async def test_a_streamed_source_that_fails_keeps_its_first_pieces(
    patch: Patch, response: Response | Exception, samples: bytes, failure: str
) -> None:
    received, source = await streamed(patch, response, seconds=0.1)
    assert (received, source.result.failure) == (samples, failure)


class Sent:
    """The bytes that a writer sends."""

    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: bytes) -> None:
        self.data += data


def piece(name: str, kind: str, samples: str) -> Piece:
    family = Family(name.encode())
    family.kind = kind.encode()
    family.headers = {b"TYPE": family.kind}
    return Piece(family, samples.encode())


async def test_the_comments_of_a_family_are_written_once() -> None:
    sent = Sent()
    writer = ExpositionWriter(sent.write, compress=False)
    assert await writer.put(piece("a", "gauge", 'a{x="1"} 1\n'))
    assert await writer.put(piece("a", "gauge", 'a{x="2"} 2\n'))
    assert not await writer.put(piece("a", "counter", "a 3\n"))
    await writer.end(Format.OPENMETRICS_1)
    assert sent.data == b'# TYPE a gauge\na{x="1"} 1\na{x="2"} 2\n# EOF\n'


async def test_a_writer_compresses() -> None:
    sent = Sent()
    writer = ExpositionWriter(sent.write, compress=True)
    for number in range(1000):
        await writer.put(piece(f"a{number}", "gauge", f"a{number} 1\n"))
    await writer.end(Format.TEXT)
    assert zlib.decompress(sent.data, wbits=31).count(b"\n") == 2000


async def test_families_are_grouped_by_name_and_conflicts_are_counted() -> None:
    first, second = buffered("first"), buffered("second")
    first.format = second.format = Format.TEXT
    first.pieces = [piece("a", "gauge", 'a{x="1"} 1\n'), piece("b", "gauge", "b 1\n")]
    second.pieces = [piece("b", "counter", "b 2\n"), piece("a", "gauge", 'a{x="2"} 2\n')]
    sent = Sent()
    writer = ExpositionWriter(sent.write, compress=False)
    await write_buffered([first, second], writer, Format.TEXT)
    await writer.end(Format.TEXT)
    assert sent.data == b'# TYPE a gauge\na{x="1"} 1\na{x="2"} 2\n# TYPE b gauge\nb 1\n'
    assert (first.result.skipped, second.result.skipped) == (0, 1)


async def test_results_are_metrics_of_each_source() -> None:
    sent = Sent()
    writer = ExpositionWriter(sent.write, compress=False)
    results = [SourceResult("envoy", "", 0.25), SourceResult('a "b"', "it did not respond in time", 1.0, 3)]
    await write_results(results, writer, Labels({"mesh": "m"}))
    await writer.end(Format.TEXT)
    lines = sent.data.decode().splitlines()
    assert 'kumadp_scrape_source_up{source="envoy",mesh="m"} 1' in lines
    assert 'kumadp_scrape_source_up{source="a \\"b\\"",mesh="m"} 0' in lines
    assert 'kumadp_scrape_source_duration_seconds{source="envoy",mesh="m"} 0.250000' in lines
    assert 'kumadp_scrape_source_skipped_families{source="a \\"b\\"",mesh="m"} 3' in lines
