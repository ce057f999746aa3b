"""Quoted (UTF-8) names of metrics and labels, escaped for scrapers that did not negotiate them.

Rules: Prometheus' documentation "Content negotiation: escaping" and model.EscapeName of prometheus/common 0.67, which
kuma-dp 2.13 uses. A name of the old form is never changed.
"""

from __future__ import annotations

import re

ALLOW, UNDERSCORES, DOTS, VALUES = "allow-utf-8", "underscores", "dots", "values"
SCHEMES = frozenset({ALLOW, UNDERSCORES, DOTS, VALUES})
# For scrapers that name no scheme (prometheus/common: NameEscapingScheme).
DEFAULT = UNDERSCORES
_OLD_FORM = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_ALLOWED = re.compile(r"[a-zA-Z0-9_:]")
_START = re.compile(rb'([^{ \t\n"]*+)[ \t]*+\{')
_ITEM = re.compile(
    rb'[ \t]*+(?:"((?:[^"\\\n]|\\[^\n])*+)"|([^"{}=, \t\n]++))[ \t]*+(?:=[ \t]*+("(?:[^"\\\n]|\\[^\n])*+"))?+[ \t]*+,?+'
)
_ESCAPED = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n", '"': '"', "\\": "\\"}
_SIGNS = (b'{"', b',"', b"{ ", b", ", b"{\t", b",\t")


def has_quoted(samples: bytes) -> bool:
    """Whether any of these lines may have a quoted name; wrong ones may be taken for it."""
    return any(sign in samples for sign in _SIGNS)


def unquoted(text: bytes) -> str:
    """A quoted name, or one of the old form, as it is meant."""
    name = text.removeprefix(b'"').removesuffix(b'"').decode(errors="replace")
    return _ESCAPED.sub(lambda match: _UNESCAPED.get(match[1], match[0]), name) if "\\" in name else name


def escaped(name: str, scheme: str) -> bytes:
    """``name`` in the old form, by one of the schemes but `ALLOW`; empty where it has none."""
    if _OLD_FORM.fullmatch(name) or not name:
        return name.encode()
    parts = ["U__"] if scheme == VALUES else []
    for at, char in enumerate(name):
        if char == "_" and scheme != UNDERSCORES:
            parts.append("__")
        elif char == "." and scheme == DOTS:
            parts.append("_dot_")
        elif _ALLOWED.fullmatch(char) and (at > 0 or not char.isdigit()):
            parts.append(char)
        else:
            parts.append(f"_{ord(char):x}_" if scheme == VALUES else "__" if scheme == DOTS else "_")
    return "".join(parts).encode()


def parsed(series: bytes) -> tuple[str, list[tuple[str, str]]]:
    """Name and labels of a series, where names may be quoted; values as they are written, without their quotes."""
    start = _START.match(series)
    if start is None:
        return series.decode(errors="replace").strip(), []
    name, at = start[1].decode(), start.end()
    labels: list[tuple[str, str]] = []
    while (item := _ITEM.match(series, at)) is not None:
        quoted, plain, value = item.groups()
        label = unquoted(quoted) if quoted is not None else plain.decode(errors="replace")
        at = item.end()
        if value is None:
            name = label
        else:
            labels.append((label, value[1:-1].decode(errors="replace")))
    return name, labels


def escaped_name(text: bytes, scheme: str) -> bytes:
    """A family's name as its comments have it, quoted or not; empty where it has no form of this scheme."""
    return text if text[:1] != b'"' or scheme == ALLOW else escaped(unquoted(text), scheme)


def escaped_samples(samples: bytes, scheme: str) -> bytes:
    """The lines with names in the old form; a line in which two labels would have one name is left out."""
    if scheme == ALLOW or not has_quoted(samples):
        return samples
    return b"".join(_line(line, scheme) for line in samples.splitlines(keepends=True))


def _line(line: bytes, scheme: str) -> bytes:
    start = _START.match(line)
    if start is None:
        return _without_quoted_exemplar(line)
    name, at = start[1], start.end()
    labels: list[bytes] = []
    names: set[bytes] = set()
    while (item := _ITEM.match(line, at)) is not None:
        quoted, plain, value = item.groups()
        label = escaped(unquoted(quoted), scheme) if quoted is not None else plain
        at = item.end()
        if value is None:
            name = label
            continue
        if label in names or not label:
            return b""
        names.add(label)
        # A colon is for names of metrics alone.
        labels.append((label.replace(b":", b"_") if quoted is not None else label) + b"=" + value)
    end = line.find(b"}", at)
    if not name or end < 0:
        return b""
    return name + (b"{" + b",".join(labels) + b"}" if labels else b"") + _without_quoted_exemplar(line[end + 1 :])


def _without_quoted_exemplar(text: bytes) -> bytes:
    """The end of a line, or one without labels: no scheme covers the labels of exemplars (prometheus/common 0.67)."""
    value, mark, exemplar = text.partition(b" # ")
    start = _START.match(exemplar)
    at = start.end() if start is not None else len(exemplar)
    while (item := _ITEM.match(exemplar, at)) is not None:
        if item[1] is not None:
            return value + b"\n"
        at = item.end()
    return value + mark + exemplar
