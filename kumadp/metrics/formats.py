"""The two text formats: negotiation of the format of a response, and conversion of families between the formats.

Kuma (2.8 to 2.14) uses the best type of all sources for the whole response and joins the bodies unchanged. kumadp
converts each body to that type, so that the result is valid: timestamps in seconds or milliseconds, types that only one
format has, exemplars, comments.
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
    """The format of a response; a higher value is preferred."""

    UNKNOWN = 0
    TEXT = 1
    OPENMETRICS_0 = 2
    OPENMETRICS_1 = 3

    @property
    def is_openmetrics(self) -> bool:
        """Whether it is OpenMetrics."""
        return self >= Format.OPENMETRICS_0


TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONTENT_TYPES = {
    Format.TEXT: TEXT_TYPE,
    Format.OPENMETRICS_0: "application/openmetrics-text; version=0.0.1; charset=utf-8",
    Format.OPENMETRICS_1: "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
# As Prometheus requests it.
_PLAIN = "text/plain;version=0.0.4"
END = b"# EOF\n"
_OPEN = "application/openmetrics-text"
_PROTOBUF = "application/vnd.google.protobuf"
# The types of the text format for those of OpenMetrics.
_IN_TEXT = {b"unknown": b"untyped", b"info": b"gauge", b"stateset": b"gauge", b"gaugehistogram": b"untyped"}
_CREATED = re.compile(rb"^[^{ \t\n]+_created[{ \t][^\n]*\n", re.M)
# A value of any spelling (NaN, 1e5) with a timestamp behind it.
_TIMESTAMPED = re.compile(rb"[ \t][^ \t\n]++[ \t]++[-+0-9.eE]++[ \t]*+(?:#[^\n]*+)?\n")


def _media(text: str) -> tuple[str, dict[str, str]]:
    media, *parameters = text.split(";")
    pairs = (part.partition("=") for part in parameters)
    return media.strip().lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def format_of(content_type: str) -> Format | None:
    """Return the format of a source's content type; ``text/plain`` of any version is 0.0.4. None if it is not text."""
    media, parameters = _media(content_type) if content_type else ("", {})
    if media == _OPEN:
        version = parameters.get("version", "")
        versions = {"": Format.OPENMETRICS_0, "0.0.1": Format.OPENMETRICS_0, "1.0.0": Format.OPENMETRICS_1}
        return versions.get(version, Format.UNKNOWN)
    if media == "text/plain" and content_type:
        return Format.TEXT
    return None if media == _PROTOBUF else Format.UNKNOWN


def _preferences(accept: str) -> Iterator[tuple[Format, str]]:
    """Return the formats that a scraper accepts, with the escaping for each, the preferred one first.

    Ordered by q, then by position (RFC 9110).
    """
    preferences = []
    for position, part in enumerate(accept.split(",")):
        media, parameters = _media(part.strip())
        form = _form_of(media, parameters.get("version", ""))
        try:
            # A q in the form of RFC 2231 is not valid.
            weight = float(parameters.get("q", "0" if "q*" in parameters else "1"))
        except ValueError:
            weight = 0.0
        if weight > 0 and form is not None:
            preferences.append((-weight, position, form, parameters.get("escaping", "").lower()))
    for _, _, form, escaping in sorted(preferences):
        yield form, escaping if escaping in SCHEMES else ""


def _form_of(media: str, version: str) -> Format | None:
    if media == _OPEN and version in {"", "0.0.1", "1.0.0"}:
        return Format.OPENMETRICS_1 if version == "1.0.0" else Format.OPENMETRICS_0
    return Format.TEXT if media in {"text/plain", "text/*", "*/*"} else None


def _accepted(accept: str) -> Iterator[Format]:
    return (form for form, _ in _preferences(accept))


def escaping_of(accept: str, form: Format) -> str:
    """Return the escaping of UTF-8 names that the scraper requests for ``form``, empty if it requests none."""
    return next((escaping for accepted, escaping in _preferences(accept) if accepted is form), "")


def accept_for_sources(accept: str) -> str:
    """Return the part of a scraper's ``Accept`` that is sent to sources: the text formats, which can be merged.

    Wildcards are removed as well, since they allow a source to respond with protobuf.
    """
    parts = (part.strip() for part in accept.split(","))
    accepted = [
        part for part in parts if "*" not in part.partition(";")[0] and next(_preferences(part), None) is not None
    ]
    return ",".join(accepted) or _PLAIN


def choose(accept: str, named: Iterable[Format]) -> Format:
    """Return the format of the response: the best one of the sources, else the one that the scraper prefers.

    OpenMetrics is used only if the scraper accepts it or sends no ``Accept``; else such sources are converted to text.
    """
    accepted = set(_accepted(accept))
    best = max(named, default=Format.UNKNOWN)
    if best is Format.UNKNOWN:
        return next(_accepted(accept), Format.TEXT)
    accepts_open = not accept.strip() or any(form.is_openmetrics for form in accepted)
    return best if accepts_open or not best.is_openmetrics else Format.TEXT


class FormatConverter:
    """Converts the pieces of one source from format ``source`` to ``target``, with names escaped by ``escaping``."""

    def __init__(self, source: Format, target: Format, escaping: str = ALLOW) -> None:
        self._escaping = escaping
        self._family: Family | None = None
        self._converted: Family | None = None
        self._is_open = target.is_openmetrics
        self._to_openmetrics = target.is_openmetrics and not source.is_openmetrics
        self._to_text = source.is_openmetrics and not target.is_openmetrics

    def convert(self, piece: Piece) -> Piece:
        """Return the piece in the target format."""
        family, samples = piece
        converted = self.family_of(family)
        samples = escaped_samples(samples, self._escaping)
        if not self._to_openmetrics and not self._to_text:
            return Piece(converted, samples)
        if self._to_text:
            samples = _CREATED.sub(b"", samples)
            if b" # " in samples or _TIMESTAMPED.search(samples):
                samples = SAMPLE.sub(lambda match: _line(match, 1000), samples)
        elif _TIMESTAMPED.search(samples) or b" # " in samples:
            samples = SAMPLE.sub(lambda match: _line(match, 0.001), samples)
        return Piece(converted, samples)

    def family_of(self, family: Family) -> Family:
        """Return the family in the target format; its name is empty if the escaping leaves nothing."""
        if family is not self._family or self._converted is None:
            converted = self._family_of(family)
            name = escaped_name(converted.name, self._escaping)
            self._family = family
            self._converted = converted if name == converted.name else _renamed(converted, name, converted.kind)
        return self._converted

    def _family_of(self, family: Family) -> Family:
        if self._is_open:
            kind = b"unknown" if family.kind == b"untyped" else family.kind
            # A counter keeps its name, with or without ``_total``, and its type: scrapers depend on both.
            return family if kind == family.kind else _renamed(family, family.name, kind)
        suffix = {b"counter": b"_total", b"info": b"_info"}.get(family.kind, b"") if self._to_text else b""
        name = _with_suffix(family.name, suffix)
        kind = _IN_TEXT.get(family.kind, family.kind)
        if (name, kind) == (family.name, family.kind) and b"UNIT" not in family.headers:
            return family
        return _renamed(family, name, kind)


def _with_suffix(name: bytes, suffix: bytes) -> bytes:
    if name[:1] == b'"':
        return name if name.endswith(suffix + b'"') else name[:-1] + suffix + b'"'
    return name if name.endswith(suffix) else name + suffix


def _line(match: re.Match[bytes], factor: float) -> bytes:
    """Return a sample without exemplar, its timestamp in the other unit."""
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
