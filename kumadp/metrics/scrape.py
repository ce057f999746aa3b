"""One scrape: all sources are read concurrently, Envoy's exposition is streamed, those of the others follow.

Every source has until the deadline. A source that hangs, fails or is too large loses its own part only. Families of the
same name are written together, as the formats require.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kumadp.exposition.names import ALLOW
from kumadp.exposition.reader import (
    MAX_PIECES,
    MAX_SAMPLES,
    SLICE,
    ExpositionReader,
    ExpositionTooLarge,
    Family,
    LineTooLong,
    Piece,
)
from kumadp.metrics.bounds import with_go_bounds
from kumadp.metrics.formats import END, Format, FormatConverter
from kumadp.metrics.sources import SourceFailed, open_source

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from kumadp.metrics.labels import Labels
    from kumadp.metrics.sources import ScrapeTarget


# Work before the event loop gets a turn, in bytes and in pieces: that many irregular lines take 10 ms.
_BYTES_PER_TURN = 16 << 10
_PIECES_PER_TURN = 500


class Transform(Protocol):
    """Changes the pieces of Envoy's exposition; ``skipped`` counts families that were dropped."""

    skipped: int

    def take(self, piece: Piece) -> Iterator[Piece]:
        """Accept a piece; return the pieces that are complete."""

    def end(self) -> Iterator[Piece]:
        """Return the buffered pieces."""


@dataclass(slots=True)
class SourceResult:
    """The result of reading a source: ``failure`` is empty if it succeeded; ``seconds`` is the duration."""

    name: str
    failure: str = ""
    seconds: float = 0.0
    skipped: int = 0


@dataclass(slots=True)
class BufferedSource:
    """A source that is read completely before it is written; ``only`` are prefixes of selected names, empty for all.

    ``rewritten``: kuma-dp parses its text and formats it again, instead of forwarding it.
    """

    target: ScrapeTarget
    labels: Labels
    headers: Mapping[str, str]
    only: tuple[bytes, ...] = ()
    format: Format = Format.UNKNOWN
    rewritten: bool = False
    pieces: list[Piece] = field(default_factory=list, init=False)
    result: SourceResult = field(init=False)
    _samples: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.result = SourceResult(self.target.name)

    async def read(self, deadline: float, format_known: asyncio.Event) -> None:
        """Read the source; ``format_known`` is set once its format is known, or when it failed."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        reader = ExpositionReader(checks=True)
        try:
            async with asyncio.timeout_at(deadline), open_source(self.target, self.headers) as response:
                self.format = response.format
                reader = ExpositionReader(checks=True, is_openmetrics=self.format.is_openmetrics)
                format_known.set()
                async for part in response.parts():
                    for at in range(0, len(part), _BYTES_PER_TURN):
                        self._append(reader.feed(part[at : at + _BYTES_PER_TURN]))
                        await asyncio.sleep(0)
                self._append(reader.end())
            self.pieces = [piece for piece in self.pieces if piece.family.name not in reader.invalid]
            self.result.skipped = len(reader.invalid)
            if reader.invalid and not self.pieces:
                self._fail("its response has no metrics")
        except (SourceFailed, LineTooLong, ExpositionTooLarge) as error:
            self._fail(str(error))
        except TimeoutError:
            self._fail("it did not respond in time")
        except Exception as error:
            # A bug that its response triggers must not affect the other sources.
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self.result.seconds = loop.time() - since
            format_known.set()

    def _append(self, pieces: Iterator[Piece]) -> None:
        for piece in pieces:
            if not self.only or piece.family.name.startswith(self.only):
                self.pieces.append(piece)
                self._samples += piece.samples.count(b"\n")
        if self._samples > MAX_SAMPLES:
            raise ExpositionTooLarge(f"it has more than {MAX_SAMPLES} samples")
        if len(self.pieces) > MAX_PIECES:
            raise ExpositionTooLarge("its families are not grouped, and come in too many pieces")

    def finish(self, piece: Piece) -> Piece:
        """Return the piece with the labels, and with Go's bounds if kuma-dp rewrites the source."""
        return self.labels.add(with_go_bounds(piece) if self.rewritten else piece)

    def _fail(self, failure: str) -> None:
        self.result.failure = failure
        self.format = Format.UNKNOWN
        self.pieces.clear()


@dataclass(slots=True)
class StreamedSource:
    """Envoy, whose exposition is forwarded while it is read."""

    target: ScrapeTarget
    transform: Transform
    headers: Mapping[str, str]
    result: SourceResult = field(init=False)

    def __post_init__(self) -> None:
        self.result = SourceResult(self.target.name)

    @contextlib.asynccontextmanager
    async def open(self, deadline: float) -> AsyncIterator[tuple[Format, AsyncIterator[Piece]]]:
        """Open the source; return its format and its pieces, which end at a failure (see ``result``)."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(deadline):
                    response = await stack.enter_async_context(open_source(self.target, self.headers))
            except (SourceFailed, TimeoutError) as error:
                self.result.failure = str(error) or "it did not respond in time"
                self.result.seconds = loop.time() - since
                yield Format.UNKNOWN, _no_pieces()
                return
            try:
                yield response.format, self._pieces(response.parts(), deadline)
            finally:
                self.result.seconds = loop.time() - since

    async def _pieces(self, parts: AsyncIterator[bytes], deadline: float) -> AsyncIterator[Piece]:
        reader, transform = ExpositionReader(checks=False), self.transform
        try:
            while (part := await _next(parts, deadline)) is not None:
                for piece in reader.feed(part):
                    for changed in transform.take(piece):
                        yield with_go_bounds(changed)
            for piece in reader.end():
                for changed in transform.take(piece):
                    yield with_go_bounds(changed)
            for changed in transform.end():
                yield with_go_bounds(changed)
        except (SourceFailed, LineTooLong, ExpositionTooLarge) as error:
            self.result.failure = str(error)
        except TimeoutError:
            self.result.failure = "its response did not end in time"
        self.result.skipped = transform.skipped


async def _next(parts: AsyncIterator[bytes], deadline: float) -> bytes | None:
    async with asyncio.timeout_at(deadline):
        return await anext(parts, None)


async def _no_pieces() -> AsyncIterator[Piece]:
    pieces: tuple[Piece, ...] = ()
    for piece in pieces:
        yield piece


class PieceSink(Protocol):
    """Accepts pieces."""

    async def put(self, piece: Piece) -> bool:
        """Accept a piece; return False if it was dropped."""


class ExpositionWriter:
    """Writes pieces, with the comments of a family once before its first sample; ``write`` sends bytes."""

    def __init__(self, write: Callable[[bytes], Awaitable[object]], *, compress: bool) -> None:
        self._write = write
        self._compressor = zlib.compressobj(1, wbits=31) if compress else None
        self._parts: list[bytes] = []
        self._size = 0
        self._family: Family | None = None
        self._kinds: dict[bytes, bytes] = {}
        self._dropping = False

    async def put(self, piece: Piece) -> bool:
        """Write a piece; drop it and return False if a family of another kind was written under its name."""
        family, samples = piece
        if family is not self._family:
            self._family = family
            kind = self._kinds.get(family.name)
            self._dropping = kind is not None and kind != family.kind
            if kind is None:
                self._kinds[family.name] = family.kind
                await self.add(family.header())
        if not self._dropping:
            await self.add(samples)
        return not self._dropping

    async def add(self, data: bytes) -> None:
        """Write bytes; with many bytes the event loop gets a turn."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= SLICE:
            await self.flush()
        else:
            # An empty piece stands for work that produced no output.
            if len(data) > SLICE // 4 or not data:
                await asyncio.sleep(0)

    async def flush(self) -> None:
        """Send the buffered bytes."""
        data = b"".join(self._parts)
        self._parts, self._size = [], 0
        if self._compressor is not None:
            data = self._compressor.compress(data)
        if data:
            await self._write(data)
        await asyncio.sleep(0)

    async def end(self, form: Format) -> None:
        """Write the end of the exposition and send the rest."""
        if form.is_openmetrics:
            self._parts.append(END)
        await self.flush()
        if self._compressor is not None:
            await self._write(self._compressor.flush())


async def write_buffered(
    sources: list[BufferedSource], output: ExpositionWriter, form: Format, escaping: str = ALLOW
) -> None:
    """Write the families of all sources, grouped by name; each piece is converted just before it is written."""
    groups: dict[bytes, list[tuple[BufferedSource, FormatConverter, Piece]]] = {}
    count = 0
    for source in sources:
        converter = FormatConverter(source.format, form, escaping)
        for piece in source.pieces:
            groups.setdefault(converter.family_of(piece.family).name, []).append((source, converter, piece))
            count += 1
            if count % _PIECES_PER_TURN == 0:
                await asyncio.sleep(0)
        source.pieces.clear()
    for name in list(groups):
        dropped: dict[str, BufferedSource] = {}
        for source, converter, piece in groups.pop(name):
            if not name or not await output.put(source.finish(converter.convert(piece))):
                dropped[source.target.name] = source
            count += 1
            if count % _PIECES_PER_TURN == 0:
                await asyncio.sleep(0)
        for source in dropped.values():
            source.result.skipped += 1


_SERIES = {
    "kumadp_scrape_source_up": "Whether a source of metrics responded in time with usable metrics.",
    "kumadp_scrape_source_duration_seconds": "Duration of reading a source of metrics.",
    "kumadp_scrape_source_skipped_families": "Families of a source that were dropped because they are malformed.",
}


async def write_results(results: list[SourceResult], output: PieceSink, labels: Labels) -> None:
    """Write metrics on the sources themselves."""
    for name, text in _SERIES.items():
        family = Family(name.encode())
        family.kind = b"gauge"
        family.headers = {b"HELP": text.encode(), b"TYPE": b"gauge"}
        lines = []
        for result in results:
            value = {
                "kumadp_scrape_source_up": f"{int(not result.failure)}",
                "kumadp_scrape_source_duration_seconds": f"{result.seconds:.6f}",
            }.get(name, str(result.skipped))
            source = result.name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
            lines.append(f'{name}{{source="{source}"}} {value}\n')
        await output.put(labels.add(Piece(family, "".join(lines).encode())))
