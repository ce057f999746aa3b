"""The two text formats: which one an answer has, and families brought from one to the other.

Kuma (2.8 to 2.14) takes the best type that a source names for the whole answer and joins the bodies as they are. Here
each body is brought to that type, so that none spoils the others: times in seconds or milliseconds, types that one
format has and the other not, exemplars, comments.
"""

from __future__ import annotations

import enum
import re
from email.message import Message
from typing import TYPE_CHECKING

from kumadp.metrics.exposition import SAMPLE, Family, Piece

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Format(enum.IntEnum):
    """What an answer is written in, the more wanted the higher."""

    UNKNOWN = 0
    TEXT = 1
    OPENMETRICS_0 = 2
    OPENMETRICS_1 = 3

    @property
    def is_open(self) -> bool:
        """Whether it is OpenMetrics."""
        return self >= Format.OPENMETRICS_0


TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONTENT_TYPES = {
    Format.TEXT: TEXT_TYPE,
    Format.OPENMETRICS_0: "application/openmetrics-text; version=0.0.1; charset=utf-8",
    Format.OPENMETRICS_1: "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
END = b"# EOF\n"
_OPEN = "application/openmetrics-text"
_PROTOBUF = "application/vnd.google.protobuf"
# OpenMetrics' types in the text format, and the other way round.
_IN_TEXT = {b"unknown": b"untyped", b"info": b"gauge", b"stateset": b"gauge", b"gaugehistogram": b"untyped"}
_CREATED = re.compile(rb"^[^{ \t\n]+_created[{ \t][^\n]*\n", re.M)
_TIMED = re.compile(rb"[ \t][-+0-9.]+[ \t]+[-+0-9.eE]+[ \t]*(?:#[^\n]*)?\n")


def _media(text: str) -> tuple[str, dict[str, str]]:
    message = Message()
    message["content-type"] = text
    media = text.partition(";")[0].strip().lower()
    return media, {key.lower(): value for key, value in message.get_params(failobj=[])[1:]}


def format_of(content_type: str) -> Format | None:
    """What a source names (contract: ``text/plain`` of any version is 0.0.4); None where no text can be meant."""
    media, parameters = _media(content_type) if content_type else ("", {})
    if media == _OPEN:
        version = parameters.get("version", "")
        known = {"": Format.OPENMETRICS_0, "0.0.1": Format.OPENMETRICS_0, "1.0.0": Format.OPENMETRICS_1}
        return known.get(version, Format.UNKNOWN)
    if media == "text/plain" and content_type:
        return Format.TEXT
    return None if media == _PROTOBUF else Format.UNKNOWN


def _accepted(accept: str) -> Iterator[Format]:
    """What a scraper takes, the most wanted first (RFC 9110: by q, then by place)."""
    wanted = []
    for place, part in enumerate(accept.split(",")):
        media, parameters = _media(part.strip())
        try:
            weight = float(parameters.get("q", "1"))
        except (ValueError, TypeError):
            # None, or one in the form of RFC 2231.
            weight = 0.0
        if weight > 0:
            wanted.append((-weight, place, media, parameters.get("version", "")))
    for _, _, media, version in sorted(wanted):
        if media == _OPEN and version in {"", "0.0.1", "1.0.0"}:
            yield Format.OPENMETRICS_1 if version == "1.0.0" else Format.OPENMETRICS_0
        elif media in {"text/plain", "text/*", "*/*"}:
            yield Format.TEXT


def choose(accept: str, named: Iterable[Format]) -> Format:
    """What to answer in: the best that a source names, else what the scraper asks for.

    OpenMetrics only where the scraper takes it, or says nothing: whoever names it unasked is brought to text.
    """
    accepted = set(_accepted(accept))
    best = max(named, default=Format.UNKNOWN)
    if best is Format.UNKNOWN:
        return next(_accepted(accept), Format.TEXT)
    takes_open = not accept.strip() or any(one.is_open for one in accepted)
    return best if takes_open or not best.is_open else Format.TEXT


class Converter:
    """Brings the pieces of one source, which are written in ``source``, to ``target``."""

    def __init__(self, source: Format, target: Format) -> None:
        self._family: Family | None = None
        self._given: Family | None = None
        self._is_open = target.is_open
        self._to_open = target.is_open and not source.is_open
        self._to_text = source.is_open and not target.is_open

    def convert(self, piece: Piece) -> Piece:
        """The piece as ``target`` has it."""
        family, samples = piece
        if family is not self._family:
            self._family, self._given = family, self._family_of(family)
        assert self._given is not None  # noqa: S101
        if not self._to_open and not self._to_text:
            return Piece(self._given, samples)
        if self._to_text:
            samples = _CREATED.sub(b"", samples)
            if b" # " in samples or _TIMED.search(samples):
                samples = SAMPLE.sub(lambda match: _line(match, 1000), samples)
        elif _TIMED.search(samples) or b" # " in samples:
            samples = SAMPLE.sub(lambda match: _line(match, 0.001), samples)
        return Piece(self._given, samples)

    def _family_of(self, family: Family) -> Family:
        if self._is_open:
            kind = b"unknown" if family.kind == b"untyped" else family.kind
            # A counter keeps its name, with ``_total`` or without, and its type: scrapers go by it.
            return family if kind == family.kind else _renamed(family, family.name, kind)
        ending = {b"counter": b"_total", b"info": b"_info"}.get(family.kind, b"") if self._to_text else b""
        name = family.name if family.name.endswith(ending) else family.name + ending
        kind = _IN_TEXT.get(family.kind, family.kind)
        if (name, kind) == (family.name, family.kind) and b"UNIT" not in family.headers:
            return family
        return _renamed(family, name, kind)


def _line(match: re.Match[bytes], factor: float) -> bytes:
    """A sample without exemplar, its time in the other unit."""
    series, value, at, _ = match.groups()
    if at is None:
        return b"%b %b" % (series, value)
    try:
        time = float(at) * factor
    except ValueError:
        return b"%b %b" % (series, value)
    return b"%b %b %b" % (series, value, b"%d" % round(time) if factor > 1 else b"%.3f" % time)


def _renamed(family: Family, name: bytes, kind: bytes) -> Family:
    other = Family(name)
    other.kind = kind
    other.headers = {word: text for word, text in family.headers.items() if word != b"UNIT"}
    if b"TYPE" in other.headers:
        other.headers[b"TYPE"] = kind
    return other
