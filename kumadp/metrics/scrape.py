"""One scrape: all sources asked at once, Envoy's exposition passed on as it comes, the others' after it.

Every source has until the deadline; what it has given by then counts, and one that hangs, breaks or is too large costs
its own part alone. Families of one name are told together, as the formats want it.
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
    Family,
    LineTooLong,
    Piece,
    TooManyFamilies,
)
from kumadp.metrics.bounds import with_go_bounds
from kumadp.metrics.formats import END, Converter, Format
from kumadp.metrics.sources import SourceFailed, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from kumadp.metrics.labels import Labels
    from kumadp.metrics.sources import Target


# What is read before other things have their turn, in bytes and in pieces: lines that each need a look take 10 ms.
_TURN = 16 << 10
_PIECES_OF_A_TURN = 500


class Transform(Protocol):
    """Changes the pieces of Envoy's exposition; ``skipped`` counts families that could not be."""

    skipped: int

    def take(self, piece: Piece) -> Iterator[Piece]:
        """What can be told now."""

    def end(self) -> Iterator[Piece]:
        """What was held back."""


@dataclass(slots=True)
class Result:
    """How a source fared: ``why`` it failed, empty where it did not; ``took`` in seconds."""

    name: str
    why: str = ""
    took: float = 0.0
    skipped: int = 0


@dataclass(slots=True)
class Other:
    """A source that is read whole before it is written: ``only`` are beginnings of the names wanted, empty for all.

    ``rewritten``: kuma-dp parses its text and writes it, instead of passing it on.
    """

    target: Target
    labels: Labels
    headers: Mapping[str, str]
    only: tuple[bytes, ...] = ()
    format: Format = Format.UNKNOWN
    rewritten: bool = False
    pieces: list[Piece] = field(default_factory=list)
    result: Result = field(init=False)
    _samples: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.result = Result(self.target.name)

    async def read(self, deadline: float, known: asyncio.Event) -> None:
        """Read it; ``known`` is set when its format is, or when there is none."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        reader = ExpositionReader(checks=True)
        try:
            async with asyncio.timeout_at(deadline), opened(self.target, self.headers) as answer:
                self.format = answer.format
                reader = ExpositionReader(checks=True, is_open=self.format.is_open)
                known.set()
                async for part in answer.parts():
                    for at in range(0, len(part), _TURN):
                        self._keep(reader.feed(part[at : at + _TURN]))
                        await asyncio.sleep(0)
                self._keep(reader.end())
            self.pieces = [piece for piece in self.pieces if piece.family.name not in reader.invalid]
            self.result.skipped = len(reader.invalid)
            if reader.invalid and not self.pieces:
                self._fail("its answer holds no metrics")
        except (SourceFailed, LineTooLong, TooManyFamilies) as error:
            self._fail(str(error))
        except TimeoutError:
            self._fail("it did not answer in time")
        except Exception as error:
            # Even a bug that its answer brings to light costs its own part alone.
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self.result.took = loop.time() - since
            known.set()

    def _keep(self, pieces: Iterator[Piece]) -> None:
        only = self.only
        for piece in pieces:
            if not only or piece.family.name.startswith(only):
                self.pieces.append(piece)
                self._samples += piece.samples.count(b"\n")
        if self._samples > MAX_SAMPLES:
            raise TooManyFamilies(f"it has more than {MAX_SAMPLES} samples")
        if len(self.pieces) > MAX_PIECES:
            raise TooManyFamilies("its families are not grouped, and come in too many pieces")

    def changed(self, piece: Piece) -> Piece:
        """With the labels, and where kuma-dp rewrites the source with bounds as it writes them."""
        return self.labels.add(with_go_bounds(piece) if self.rewritten else piece)

    def _fail(self, why: str) -> None:
        self.result.why = why
        self.format = Format.UNKNOWN
        self.pieces.clear()


@dataclass(slots=True)
class Live:
    """Envoy, whose exposition is passed on while it is read."""

    target: Target
    transform: Transform
    headers: Mapping[str, str]
    result: Result = field(init=False)

    def __post_init__(self) -> None:
        self.result = Result(self.target.name)

    @contextlib.asynccontextmanager
    async def reading(self, deadline: float) -> AsyncIterator[tuple[Format, AsyncIterator[Piece]]]:
        """Its format and its pieces; what goes wrong ends them, and is told in ``result``."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await stack.enter_async_context(opened(self.target, self.headers))
            except (SourceFailed, TimeoutError) as error:
                self.result.why = str(error) or "it did not answer in time"
                self.result.took = loop.time() - since
                yield Format.UNKNOWN, _nothing()
                return
            try:
                yield answer.format, self._pieces(answer.parts(), deadline)
            finally:
                self.result.took = loop.time() - since

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
        except (SourceFailed, LineTooLong, TooManyFamilies) as error:
            self.result.why = str(error)
        except TimeoutError:
            self.result.why = "its answer did not end in time"
        self.result.skipped = transform.skipped


async def _next(parts: AsyncIterator[bytes], deadline: float) -> bytes | None:
    async with asyncio.timeout_at(deadline):
        return await anext(parts, None)


async def _nothing() -> AsyncIterator[Piece]:
    pieces: tuple[Piece, ...] = ()
    for piece in pieces:
        yield piece


class Sink(Protocol):
    """Takes pieces."""

    async def put(self, piece: Piece) -> bool:
        """Whether it was taken."""


class Output:
    """Writes pieces: the comments of a family once, before its first sample. ``write`` sends bytes."""

    def __init__(self, write: Callable[[bytes], Awaitable[object]], *, packed: bool) -> None:
        self._write = write
        self._packer = zlib.compressobj(1, wbits=31) if packed else None
        self._parts: list[bytes] = []
        self._size = 0
        self._family: Family | None = None
        self._kinds: dict[bytes, bytes] = {}
        self._refused = False

    async def put(self, piece: Piece) -> bool:
        """Write it in its turn; whether it was, as a family of another kind may have its name."""
        family, samples = piece
        if family is not self._family:
            self._family = family
            known = self._kinds.get(family.name)
            self._refused = known is not None and known != family.kind
            if known is None:
                self._kinds[family.name] = family.kind
                await self.add(family.header())
        if not self._refused:
            await self.add(samples)
        return not self._refused

    async def add(self, data: bytes) -> None:
        """Write these bytes; other things have their turn where it is much."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= SLICE:
            await self.flush()
        else:
            # Slices have their size from their maker; an empty one is told for the sake of the turn.
            if len(data) > SLICE // 4 or not data:
                await asyncio.sleep(0)

    async def flush(self) -> None:
        """Send what is there."""
        data = b"".join(self._parts)
        self._parts, self._size = [], 0
        if self._packer is not None:
            data = self._packer.compress(data)
        if data:
            await self._write(data)
        await asyncio.sleep(0)

    async def end(self, form: Format) -> None:
        """Send the rest."""
        if form.is_open:
            self._parts.append(END)
        await self.flush()
        if self._packer is not None:
            await self._write(self._packer.flush())


async def write_others(others: list[Other], output: Output, form: Format, escaping: str = ALLOW) -> None:
    """Families of one name from all of them, one after another; each piece is changed only when its turn comes."""
    groups: dict[bytes, list[tuple[Other, Converter, Piece]]] = {}
    turn = 0
    for other in others:
        converter = Converter(other.format, form, escaping)
        for piece in other.pieces:
            groups.setdefault(converter.family_of(piece.family).name, []).append((other, converter, piece))
            turn += 1
            if turn % _PIECES_OF_A_TURN == 0:
                await asyncio.sleep(0)
        other.pieces.clear()
    for name in list(groups):
        refused: dict[str, Other] = {}
        for other, converter, piece in groups.pop(name):
            if not name or not await output.put(other.changed(converter.convert(piece))):
                refused[other.target.name] = other
            turn += 1
            if turn % _PIECES_OF_A_TURN == 0:
                await asyncio.sleep(0)
        for other in refused.values():
            other.result.skipped += 1


_SERIES = {
    "kumadp_scrape_source_up": "Whether a source of metrics answered in time with what can be used.",
    "kumadp_scrape_source_duration_seconds": "Time that a source of metrics took.",
    "kumadp_scrape_source_skipped_families": "Families of a source that were left out because they are malformed.",
}


async def write_results(results: list[Result], output: Sink, labels: Labels) -> None:
    """What is to be said of the sources themselves."""
    for name, text in _SERIES.items():
        family = Family(name.encode())
        family.kind = b"gauge"
        family.headers = {b"HELP": text.encode(), b"TYPE": b"gauge"}
        lines = []
        for result in results:
            value = {
                "kumadp_scrape_source_up": f"{int(not result.why)}",
                "kumadp_scrape_source_duration_seconds": f"{result.took:.6f}",
            }.get(name, str(result.skipped))
            source = result.name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
            lines.append(f'{name}{{source="{source}"}} {value}\n')
        await output.put(labels.add(Piece(family, "".join(lines).encode())))
