"""Reads text expositions as they come: Prometheus' text format 0.0.4 and OpenMetrics 1.0, lines as bytes.

Nothing is parsed that need not be: lines between two comments are told to belong to one family by counting how many
begin with its name, and are handed on as one piece.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# Longer than any real one, in bytes.
LONGEST_LINE = 1 << 20
# What is worked on at once, in bytes: a few milliseconds.
SLICE = 128 << 10
# Families, pieces and samples of one source that is held: each costs an object or a look, however short it is.
MOST_FAMILIES = 20_000
MOST_PIECES = 100_000
MOST_SAMPLES = 1_000_000
# Parts of a line that are held apart.
_MOST_PARTS = 4096

_NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_QUOTED = rb'"(?:[^"\\\n]|\\[^\n])*+"'
_LABEL = rb"(?:" + _NAME + rb"[ \t]*+=[ \t]*+" + _QUOTED + rb"|" + _QUOTED + rb"(?:[ \t]*+=[ \t]*+" + _QUOTED + rb")?+)"
_LABELS = rb"\{[ \t]*+(?:" + _LABEL + rb"[ \t]*+(?:,[ \t]*+|(?=\})))*+\}"
_INTEGER = rb"[-+]?+[0-9]++"
_NUMBER = rb"[-+]?+(?:(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+|(?i:nan|inf(?:inity)?+))(?![^ \t\n])"
_SERIES = rb"(?:" + _NAME + rb"(?:[ \t]*+" + _LABELS + rb")?|" + _LABELS + rb")"
_EXEMPLAR = rb"# *+" + _LABELS + rb"[ \t]++" + _NUMBER + rb"(?:[ \t]++" + _NUMBER + rb")?"
# A series, its value, where there is one its time, and what follows: an exemplar.
SAMPLE = re.compile(
    rb"^(" + _SERIES + rb")[ \t]++(" + _NUMBER + rb")(?:[ \t]++(" + _NUMBER + rb"))?([ \t]++# [^\n]*+)?[ \t]*+$", re.M
)
_BEGINNING = _SERIES + rb"[ \t]++" + _NUMBER
_SAMPLES = re.compile(rb"(?:" + _BEGINNING + rb"(?:[ \t]++" + _INTEGER + rb")?[ \t]*+\n)*+")
_OPEN_SAMPLES = re.compile(
    rb"(?:" + _BEGINNING + rb"(?:[ \t]++" + _NUMBER + rb")?(?:[ \t]++" + _EXEMPLAR + rb")?[ \t]*+\n)*+"
)
_KINDS = frozenset(
    (b"counter", b"gauge", b"histogram", b"summary", b"untyped", b"unknown", b"info", b"stateset", b"gaugehistogram")
)
# Comments that say nothing of a family, one after another.
_REMARKS = re.compile(rb"(?:#(?! *(?:HELP|TYPE|UNIT)[ \t])[^\n]*+\n)++")
_HEADER = re.compile(rb'# *(HELP|TYPE|UNIT)[ \t]++("(?:[^"\\]|\\.)*+"|[^ \t\n]++)[ \t]*+([^\n]*+)')
_NAME_OF_LINE = re.compile(rb'(?:\{[ \t]*+("(?:[^"\\\n]|\\[^\n])*+")|([^{ \t\n]*+))')

# What samples of a family are called, beside its name (both formats).
_ENDINGS = {
    b"counter": (b"", b"_total", b"_created"),
    b"histogram": (b"_bucket", b"_sum", b"_count", b"_created"),
    b"gaugehistogram": (b"_bucket", b"_gsum", b"_gcount"),
    b"summary": (b"", b"_sum", b"_count", b"_created"),
    b"info": (b"", b"_info"),
}


class TooLong(Exception):
    """A line that has no end."""


class TooMany(Exception):
    """More families or pieces than are held."""


class Family:
    """What is known of a family: ``kind`` as its TYPE says it, ``headers`` (HELP, TYPE, UNIT: their text) in order."""

    __slots__ = ("headers", "kind", "name")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.kind = b"untyped"
        self.headers: dict[bytes, bytes] = {}

    def header(self) -> bytes:
        """Its comment lines."""
        return b"".join(b"# %b %b %b\n" % (word, self.name, text) for word, text in self.headers.items())

    def owns(self, name: bytes) -> bool:
        """Whether a sample of this name is one of it; a quoted name has its ending before the last quote."""
        start = self.name
        if start[:1] == b'"':
            start, name = start[1:-1], name[1:-1] if name[:1] == b'"' else name
        return any(name == start + ending for ending in _ENDINGS.get(self.kind, (b"",)))

    def owns_all(self, lines: bytes) -> bool:
        """Whether all of these are, each with its newline; wrong ones may be taken for not."""
        awaited = lines.count(b"\n")
        found = 0
        is_quoted = self.name[:1] == b'"'
        for ending in _ENDINGS.get(self.kind, (b"",)):
            start = b'{"%b%b"' % (self.name[1:-1], ending) if is_quoted else self.name + ending
            for follows in (b",", b"}") if is_quoted else (b"{", b" "):
                found += lines.count(b"\n" + start + follows) + lines.startswith(start + follows)
            if found == awaited:
                return True
        return False


class Piece(NamedTuple):
    """Whole lines of samples of a family, none where it has none; a family may come in several, one after another."""

    family: Family
    samples: bytes


class Reader:
    """Takes an exposition in parts of any size and gives its pieces.

    ``checks``: it is held against the format, OpenMetrics where ``is_open`` (Envoy's needs no such look). Lines that do
    not fit are left out, and their families are named in ``wrong``: what was given of them before is to be left out
    too. Scrapers refuse the whole for one such line. It may then have so many families, else TooMany is raised.
    """

    def __init__(self, *, checks: bool, is_open: bool = False) -> None:
        self._checks = (_OPEN_SAMPLES if is_open else _SAMPLES) if checks else None
        self._rest: list[bytes] = []
        self._waiting = 0
        self._named: dict[bytes, Family] = {}
        self._made = 0
        self._family: Family | None = None
        self._has_samples = False
        self._given = False
        self.wrong: set[bytes] = set()

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The pieces that are complete with this; raises TooLong."""
        cut = data.rfind(b"\n") + 1
        if not cut:
            # A line that comes in small parts is put together once.
            self._wait(data)
            return iter(())
        block = b"".join((*self._rest, data[:cut]))
        self._rest, self._waiting = [], 0
        self._wait(data[cut:])
        return self._lines(block)

    def _wait(self, data: bytes) -> None:
        if data:
            self._rest.append(data)
        if len(self._rest) > _MOST_PARTS:
            self._rest = [b"".join(self._rest)]
        self._waiting += len(data)
        if self._waiting > LONGEST_LINE:
            raise TooLong(f"a line is longer than {LONGEST_LINE >> 20} MB")

    def end(self) -> Iterator[Piece]:
        """What is left when all has come; the last line may lack its newline."""
        if self._rest:
            yield from self.feed(b"\n")
        yield from self._bare()

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
                    # What was fed at once may be large: it is cut at a line.
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
            yield from self._bare()
            family = self._family = Family(name)
            self._count(name, family)
            self._has_samples = self._given = False
        family.headers[word] = text
        if word == b"TYPE":
            family.kind = text.strip().lower()

    def _count(self, name: bytes, family: Family) -> None:
        self._named[name] = family
        self._made += 1
        if self._checks is not None and self._made > MOST_FAMILIES:
            raise TooMany(f"it has more than {MOST_FAMILIES} families")

    def _unnamed(self, name: bytes) -> Family:
        """The family of samples without comments: the same object each time that its name comes."""
        family = self._named.get(name)
        if family is None or family.headers:
            family = Family(name)
            self._count(name, family)
        return family

    def _bare(self) -> Iterator[Piece]:
        """The family before, where it has no samples."""
        if self._family is not None and not self._has_samples and not self._given:
            self._given = True
            yield Piece(self._family, b"")

    def _samples(self, lines: bytes) -> Iterator[Piece]:
        family = self._family
        if family is not None and family.owns_all(lines):
            yield from self._give(family, lines)
            return
        kept: list[bytes] = []
        for line in lines.splitlines(keepends=True):
            quoted, plain = _NAME_OF_LINE.match(line).groups()  # type: ignore[union-attr]  # it matches anything
            name = quoted or plain
            family = self._family
            if family is None or not family.owns(name):
                if kept and family is not None:
                    yield from self._give(family, b"".join(kept))
                yield from self._bare()
                kept = []
                self._family, self._has_samples = self._unnamed(name), False
            kept.append(line)
        if kept and self._family is not None:
            yield from self._give(self._family, b"".join(kept))

    def _give(self, family: Family, lines: bytes) -> Iterator[Piece]:
        self._has_samples = True
        if self._checks is not None and (
            family.name in self.wrong or not self._checks.fullmatch(lines) or not _is_utf8(lines)
        ):
            self.wrong.add(family.name)
            return
        yield Piece(family, lines)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
