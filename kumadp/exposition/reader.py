"""Streaming reader of text expositions: Prometheus' text format 0.0.4 and OpenMetrics 1.0, lines as bytes.

The reader parses as little as possible: it counts how many of the lines between two comments begin with the family's
name, and if all do, it returns them as one piece.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# Longer than any real line (bytes).
LONGEST_LINE = 1 << 20
# Amount of text that is processed at once (bytes): a few milliseconds.
SLICE = 128 << 10
# Limits for a source that is held in memory: each family, piece and sample costs an object, however short it is.
MAX_FAMILIES = 20_000
MAX_PIECES = 100_000
MAX_SAMPLES = 1_000_000
# Parts of an incomplete line that are not joined yet.
_MAX_PARTS = 4096

_NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_QUOTED = rb'"(?:[^"\\\n]|\\[^\n])*+"'
_LABEL = rb"(?:" + _NAME + rb"[ \t]*+=[ \t]*+" + _QUOTED + rb"|" + _QUOTED + rb"(?:[ \t]*+=[ \t]*+" + _QUOTED + rb")?+)"
_LABELS = rb"\{[ \t]*+(?:" + _LABEL + rb"[ \t]*+(?:,[ \t]*+|(?=\})))*+\}"
_INTEGER = rb"[-+]?+[0-9]++"
_NUMBER = rb"[-+]?+(?:(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+|(?i:nan|inf(?:inity)?+))(?![^ \t\n])"
_SERIES = rb"(?:" + _NAME + rb"(?:[ \t]*+" + _LABELS + rb")?|" + _LABELS + rb")"
_EXEMPLAR = rb"# *+" + _LABELS + rb"[ \t]++" + _NUMBER + rb"(?:[ \t]++" + _NUMBER + rb")?"
# Groups: series, value, timestamp if present, and the rest: an exemplar.
SAMPLE = re.compile(
    rb"^(" + _SERIES + rb")[ \t]++(" + _NUMBER + rb")(?:[ \t]++(" + _NUMBER + rb"))?([ \t]++# [^\n]*+)?[ \t]*+$", re.M
)
_SERIES_AND_VALUE = _SERIES + rb"[ \t]++" + _NUMBER
_SAMPLES = re.compile(rb"(?:" + _SERIES_AND_VALUE + rb"(?:[ \t]++" + _INTEGER + rb")?[ \t]*+\n)*+")
_OPEN_SAMPLES = re.compile(
    rb"(?:" + _SERIES_AND_VALUE + rb"(?:[ \t]++" + _NUMBER + rb")?(?:[ \t]++" + _EXEMPLAR + rb")?[ \t]*+\n)*+"
)
_KINDS = frozenset(
    (b"counter", b"gauge", b"histogram", b"summary", b"untyped", b"unknown", b"info", b"stateset", b"gaugehistogram")
)
# Consecutive comments that are not HELP, TYPE or UNIT.
_REMARKS = re.compile(rb"(?:#(?! *(?:HELP|TYPE|UNIT)[ \t])[^\n]*+\n)++")
_HEADER = re.compile(rb'# *(HELP|TYPE|UNIT)[ \t]++("(?:[^"\\]|\\.)*+"|[^ \t\n]++)[ \t]*+([^\n]*+)')
_NAME_OF_LINE = re.compile(rb'(?:\{[ \t]*+("(?:[^"\\\n]|\\[^\n])*+")|([^{ \t\n]*+))')

# Suffixes of the sample names of a family (both formats).
_SUFFIXES = {
    b"counter": (b"", b"_total", b"_created"),
    b"histogram": (b"_bucket", b"_sum", b"_count", b"_created"),
    b"gaugehistogram": (b"_bucket", b"_gsum", b"_gcount"),
    b"summary": (b"", b"_sum", b"_count", b"_created"),
    b"info": (b"", b"_info"),
}


class LineTooLong(Exception):
    """A line is longer than `LONGEST_LINE`."""


class ExpositionTooLarge(Exception):
    """The exposition has more families, pieces or samples than the limits allow."""


class Family:
    """A metric family: ``kind`` is the text of TYPE, ``headers`` the texts of HELP, TYPE and UNIT in their order."""

    __slots__ = ("headers", "kind", "name")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.kind = b"untyped"
        self.headers: dict[bytes, bytes] = {}

    def header(self) -> bytes:
        """Return its comment lines."""
        return b"".join(b"# %b %b %b\n" % (word, self.name, text) for word, text in self.headers.items())

    def owns(self, name: bytes) -> bool:
        """Return whether a sample of this name belongs to it; in a quoted name the suffix precedes the quote."""
        start = self.name
        if start[:1] == b'"':
            start, name = start[1:-1], name[1:-1] if name[:1] == b'"' else name
        return any(name == start + suffix for suffix in _SUFFIXES.get(self.kind, (b"",)))

    def owns_all(self, lines: bytes) -> bool:
        """Return whether all lines, each with its newline, belong to it; may be False if a line is malformed."""
        expected = lines.count(b"\n")
        matching = 0
        is_quoted = self.name[:1] == b'"'
        for suffix in _SUFFIXES.get(self.kind, (b"",)):
            start = b'{"%b%b"' % (self.name[1:-1], suffix) if is_quoted else self.name + suffix
            for follows in (b",", b"}") if is_quoted else (b"{", b" "):
                matching += lines.count(b"\n" + start + follows) + lines.startswith(start + follows)
            if matching == expected:
                return True
        return False


class Piece(NamedTuple):
    """Whole sample lines of a family, none if it has no samples; a family may come in several consecutive pieces."""

    family: Family
    samples: bytes


class ExpositionReader:
    """Accepts an exposition in parts of any size and returns its pieces.

    ``checks``: lines are validated against the format, OpenMetrics if ``is_openmetrics`` (Envoy's exposition needs no
    validation). Invalid lines are dropped, and their families are listed in ``invalid``: callers drop the earlier
    pieces of these families too, since scrapers reject a whole exposition for one invalid line. With ``checks`` there
    may be at most `MAX_FAMILIES` families (raises ExpositionTooLarge).
    """

    def __init__(self, *, checks: bool, is_openmetrics: bool = False) -> None:
        self._checks = (_OPEN_SAMPLES if is_openmetrics else _SAMPLES) if checks else None
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._families: dict[bytes, Family] = {}
        self._family_count = 0
        self._family: Family | None = None
        self._has_samples = False
        self._returned = False
        self.invalid: set[bytes] = set()

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Return the pieces that ``data`` completes; raises LineTooLong."""
        cut = data.rfind(b"\n") + 1
        if not cut:
            # A line that arrives in small parts is joined once.
            self._append_rest(data)
            return iter(())
        block = b"".join((*self._rest, data[:cut]))
        self._rest, self._rest_size = [], 0
        self._append_rest(data[cut:])
        return self._lines(block)

    def _append_rest(self, data: bytes) -> None:
        if data:
            self._rest.append(data)
        if len(self._rest) > _MAX_PARTS:
            self._rest = [b"".join(self._rest)]
        self._rest_size += len(data)
        if self._rest_size > LONGEST_LINE:
            raise LineTooLong(f"a line is longer than {LONGEST_LINE >> 20} MB")

    def end(self) -> Iterator[Piece]:
        """Return the pieces that remain at the end of the exposition; the last line may lack its newline."""
        if self._rest:
            yield from self.feed(b"\n")
        yield from self._empty_family()

    def _lines(self, block: bytes) -> Iterator[Piece]:
        if b"\n\n" in block or b"\r\n" in block or block[:1] == b"\n":
            block = re.sub(rb"\n++", b"\n", block.replace(b"\r\n", b"\n")).removeprefix(b"\n")
        at = 0
        while at < len(block):
            if (remarks := _REMARKS.match(block, at)) is not None:
                end = remarks.end()
            elif block.startswith(b"#", at):
                end = block.index(b"\n", at) + 1
                yield from self._comment(block[at : end - 1])
            else:
                comment = block.find(b"\n#", at)
                end = comment + 1 if comment >= 0 else len(block)
                while at < end:
                    # Large input is split at a line.
                    cut = end if end - at <= 2 * SLICE else block.index(b"\n", at + SLICE) + 1
                    yield from self._samples(block[at:cut])
                    at = cut
            at = end

    def _comment(self, line: bytes) -> Iterator[Piece]:
        match = _HEADER.match(line)
        if match is None:
            return
        word, name, text = match.groups()
        if self._checks is not None and (
            (word == b"TYPE" and text.strip().lower() not in _KINDS)
            or (word == b"UNIT" and not name.endswith(b"_" + text.strip()))
            or not _is_utf8(text)
        ):
            return
        family = self._family
        if family is None or family.name != name or self._has_samples or word in family.headers:
            yield from self._empty_family()
            family = self._family = Family(name)
            self._count(name, family)
            self._has_samples = self._returned = False
        family.headers[word] = text
        if word == b"TYPE":
            family.kind = text.strip().lower()

    def _count(self, name: bytes, family: Family) -> None:
        self._families[name] = family
        self._family_count += 1
        if self._checks is not None and self._family_count > MAX_FAMILIES:
            raise ExpositionTooLarge(f"it has more than {MAX_FAMILIES} families")

    def _family_without_comments(self, name: bytes) -> Family:
        """Return the family of samples without comments: the same object each time that its name occurs."""
        family = self._families.get(name)
        if family is None or family.headers:
            family = Family(name)
            self._count(name, family)
        return family

    def _empty_family(self) -> Iterator[Piece]:
        """Return the current family if it has no samples."""
        if self._family is not None and not self._has_samples and not self._returned:
            self._returned = True
            yield Piece(self._family, b"")

    def _samples(self, lines: bytes) -> Iterator[Piece]:
        family = self._family
        if family is not None and family.owns_all(lines):
            yield from self._return_lines(family, lines)
            return
        pending: list[bytes] = []
        for line in split_lines(lines):
            quoted, plain = _NAME_OF_LINE.match(line).groups()  # type: ignore[union-attr]  # it matches anything
            name = quoted or plain
            family = self._family
            if family is None or not family.owns(name):
                if pending and family is not None:
                    yield from self._return_lines(family, b"".join(pending))
                yield from self._empty_family()
                pending = []
                self._family, self._has_samples = self._family_without_comments(name), False
            pending.append(line)
        if pending and self._family is not None:
            yield from self._return_lines(self._family, b"".join(pending))

    def _return_lines(self, family: Family, lines: bytes) -> Iterator[Piece]:
        self._has_samples = True
        if self._checks is not None and (
            family.name in self.invalid or not self._checks.fullmatch(lines) or not _is_utf8(lines)
        ):
            self.invalid.add(family.name)
            return
        yield Piece(family, lines)


def split_lines(data: bytes) -> list[bytes]:
    """Return the lines with their newlines; values of labels may have carriage returns, which end no line."""
    if b"\r" not in data:
        return data.splitlines(keepends=True)
    *lines, rest = data.split(b"\n")
    return [line + b"\n" for line in lines] + ([rest] if rest else [])


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
