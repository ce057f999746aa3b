"""The two text formats: which one an answer has, and families brought from one to the other.

Kuma (2.8 to 2.14) takes the best type that a source names for the whole answer and joins the bodies as they are. Here
each body is brought to that type, so that none spoils the others: times in seconds or milliseconds, types that one
format has and the other not, exemplars, comments.
"""

from __future__ import annotations

import enum
import math
import re
from typing import TYPE_CHECKING

from kumadp.exposition.names import ALLOW, SCHEMES, escaped_name, escaped_samples
from kumadp.exposition.reader import SAMPLE, Family, Piece

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
# As Prometheus asks for it.
_PLAIN = "text/plain;version=0.0.4"
END = b"# EOF\n"
_OPEN = "application/openmetrics-text"
_PROTOBUF = "application/vnd.google.protobuf"
# OpenMetrics' types in the text format, and the other way round.
_IN_TEXT = {b"unknown": b"untyped", b"info": b"gauge", b"stateset": b"gauge", b"gaugehistogram": b"untyped"}
_CREATED = re.compile(rb"^[^{ \t\n]+_created[{ \t][^\n]*\n", re.M)
_TIMED = re.compile(rb"[ \t][-+0-9.]+[ \t]+[-+0-9.eE]+[ \t]*(?:#[^\n]*)?\n")


def _media(text: str) -> tuple[str, dict[str, str]]:
    media, *parameters = text.split(";")
    pairs = (part.partition("=") for part in parameters)
    return media.strip().lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


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


def _wanted(accept: str) -> Iterator[tuple[Format, str]]:
    """The formats that a scraper takes, and the escaping it names with each, the most wanted first.

    By q, then by place (RFC 9110).
    """
    wanted = []
    for place, part in enumerate(accept.split(",")):
        media, parameters = _media(part.strip())
        form = _form_of(media, parameters.get("version", ""))
        try:
            # One in the form of RFC 2231 is none.
            weight = float(parameters.get("q", "0" if "q*" in parameters else "1"))
        except ValueError:
            weight = 0.0
        if weight > 0 and form is not None:
            wanted.append((-weight, place, form, parameters.get("escaping", "").lower()))
    for _, _, form, escaping in sorted(wanted):
        yield form, escaping if escaping in SCHEMES else ""


def _form_of(media: str, version: str) -> Format | None:
    if media == _OPEN and version in {"", "0.0.1", "1.0.0"}:
        return Format.OPENMETRICS_1 if version == "1.0.0" else Format.OPENMETRICS_0
    return Format.TEXT if media in {"text/plain", "text/*", "*/*"} else None


def _accepted(accept: str) -> Iterator[Format]:
    return (form for form, _ in _wanted(accept))


def escaping_of(accept: str, form: Format) -> str:
    """How the scraper wants UTF-8 names in ``form``, empty where it does not say."""
    return next((escaping for accepted, escaping in _wanted(accept) if accepted is form), "")


def accept_for_sources(accept: str) -> str:
    """What of a scraper's ``Accept`` is sent to sources: the formats that are merged here, which protobuf is not.

    A wildcard stays out as well, since it allows whatever a source likes best.
    """
    parts = (part.strip() for part in accept.split(","))
    kept = [part for part in parts if "*" not in part.partition(";")[0] and next(_wanted(part), None) is not None]
    return ",".join(kept) or _PLAIN


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
    """Brings the pieces of one source, which are written in ``source``, to ``target``, and names by ``escaping``."""

    def __init__(self, source: Format, target: Format, escaping: str = ALLOW) -> None:
        self._escaping = escaping
        self._family: Family | None = None
        self._given: Family | None = None
        self._is_open = target.is_open
        self._to_open = target.is_open and not source.is_open
        self._to_text = source.is_open and not target.is_open

    def convert(self, piece: Piece) -> Piece:
        """The piece as ``target`` has it."""
        family, samples = piece
        given = self.family_of(family)
        samples = escaped_samples(samples, self._escaping)
        if not self._to_open and not self._to_text:
            return Piece(given, samples)
        if self._to_text:
            samples = _CREATED.sub(b"", samples)
            if b" # " in samples or _TIMED.search(samples):
                samples = SAMPLE.sub(lambda match: _line(match, 1000), samples)
        elif _TIMED.search(samples) or b" # " in samples:
            samples = SAMPLE.sub(lambda match: _line(match, 0.001), samples)
        return Piece(given, samples)

    def family_of(self, family: Family) -> Family:
        """The family as ``target`` has it; its name is empty where the escaping leaves none."""
        if family is not self._family or self._given is None:
            given = self._family_of(family)
            name = escaped_name(given.name, self._escaping)
            self._family = family
            self._given = given if name == given.name else _renamed(given, name, given.kind)
        return self._given

    def _family_of(self, family: Family) -> Family:
        if self._is_open:
            kind = b"unknown" if family.kind == b"untyped" else family.kind
            # A counter keeps its name, with ``_total`` or without, and its type: scrapers go by it.
            return family if kind == family.kind else _renamed(family, family.name, kind)
        ending = {b"counter": b"_total", b"info": b"_info"}.get(family.kind, b"") if self._to_text else b""
        name = _with_ending(family.name, ending)
        kind = _IN_TEXT.get(family.kind, family.kind)
        if (name, kind) == (family.name, family.kind) and b"UNIT" not in family.headers:
            return family
        return _renamed(family, name, kind)


def _with_ending(name: bytes, ending: bytes) -> bytes:
    if name[:1] == b'"':
        return name if name.endswith(ending + b'"') else name[:-1] + ending + b'"'
    return name if name.endswith(ending) else name + ending


def _line(match: re.Match[bytes], factor: float) -> bytes:
    """A sample without exemplar, its time in the other unit."""
    series, value, at, _ = match.groups()
    if at is None:
        return b"%b %b" % (series, value)
    time = float(at) * factor
    if not math.isfinite(time):
        return b"%b %b" % (series, value)
    return b"%b %b %b" % (series, value, b"%d" % round(time) if factor > 1 else b"%.3f" % time)


def _renamed(family: Family, name: bytes, kind: bytes) -> Family:
    other = Family(name)
    other.kind = kind
    other.headers = {word: text for word, text in family.headers.items() if word != b"UNIT"}
    if b"TYPE" in other.headers:
        other.headers[b"TYPE"] = kind
    return other
