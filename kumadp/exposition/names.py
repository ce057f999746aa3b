"""Quoted (UTF-8) names of metrics and labels, escaped for scrapers that did not negotiate them.

Sources: Prometheus' documentation "Content negotiation: escaping" and model.EscapeName of prometheus/common 0.67, which
kuma-dp 2.13 uses. A name in the legacy form is never changed.
"""

from __future__ import annotations

import re

from kumadp.exposition.reader import split_lines

ALLOW, UNDERSCORES, DOTS, VALUES = "allow-utf-8", "underscores", "dots", "values"
SCHEMES = frozenset({ALLOW, UNDERSCORES, DOTS, VALUES})
# Of scrapers that name no scheme (prometheus/common: NameEscapingScheme).
DEFAULT_SCHEME = UNDERSCORES
_LEGACY = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_ALLOWED = re.compile(r"[a-zA-Z0-9_:]")
_START = re.compile(rb'([^{ \t\n"]*+)[ \t]*+\{')
_ITEM = re.compile(
    rb'[ \t]*+(?:"((?:[^"\\\n]|\\[^\n])*+)"|([^"{}=, \t\n]++))[ \t]*+(?:=[ \t]*+("(?:[^"\\\n]|\\[^\n])*+"))?+[ \t]*+,?+'
)
_ESCAPED = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n", '"': '"', "\\": "\\"}
_QUOTED_LABEL_STARTS = (b'{"', b',"', b"{ ", b", ", b"{\t", b",\t")


def has_quoted(samples: bytes) -> bool:
    """Return whether any of these lines may have a quoted name; malformed lines may count too."""
    return any(start in samples for start in _QUOTED_LABEL_STARTS)


def unquoted(text: bytes) -> str:
    """Return a name without its quotes and escapes; a name in the legacy form is unchanged."""
    name = text.removeprefix(b'"').removesuffix(b'"').decode(errors="replace")
    return _ESCAPED.sub(lambda match: _UNESCAPED.get(match[1], match[0]), name) if "\\" in name else name


def escaped(name: str, scheme: str) -> bytes:
    """Return ``name`` in the legacy form, by any scheme but `ALLOW`; empty if it is empty."""
    if _LEGACY.fullmatch(name) or not name:
        return name.encode()
    parts = ["U__"] if scheme == VALUES else []
    for address, char in enumerate(name):
        if char == "_" and scheme != UNDERSCORES:
            parts.append("__")
        elif char == "." and scheme == DOTS:
            parts.append("_dot_")
        elif _ALLOWED.fullmatch(char) and (address > 0 or not char.isdigit()):
            parts.append(char)
        else:
            parts.append(f"_{ord(char):x}_" if scheme == VALUES else "__" if scheme == DOTS else "_")
    return "".join(parts).encode()


def parsed(series: bytes) -> tuple[str, list[tuple[str, str]]]:
    """Return name and labels of a series, whose names may be quoted; values without their quotes, still escaped."""
    start = _START.match(series)
    if start is None:
        return series.decode(errors="replace").strip(), []
    name, address = start[1].decode(), start.end()
    labels: list[tuple[str, str]] = []
    while (item := _ITEM.match(series, address)) is not None:
        quoted, plain, value = item.groups()
        label = unquoted(quoted) if quoted is not None else plain.decode(errors="replace")
        address = item.end()
        if value is None:
            name = label
        else:
            labels.append((label, value[1:-1].decode(errors="replace")))
    return name, labels


def escaped_name(text: bytes, scheme: str) -> bytes:
    """Return a family's name, quoted or not, as its comments have it in this scheme; empty if it is empty."""
    return text if text[:1] != b'"' or scheme == ALLOW else escaped(unquoted(text), scheme)


def escaped_samples(samples: bytes, scheme: str) -> bytes:
    """Return the lines with names in the legacy form; a line in which two labels would get the same name is dropped."""
    if scheme == ALLOW or not has_quoted(samples):
        return samples
    return b"".join(_line(line, scheme) for line in split_lines(samples))


def _line(line: bytes, scheme: str) -> bytes:
    start = _START.match(line)
    if start is None:
        return _without_quoted_exemplar(line)
    name, address = start[1], start.end()
    labels: list[bytes] = []
    names: set[bytes] = set()
    while (item := _ITEM.match(line, address)) is not None:
        quoted, plain, value = item.groups()
        label = escaped(unquoted(quoted), scheme) if quoted is not None else plain
        address = item.end()
        if value is None:
            name = label
            continue
        if label in names or not label:
            return b""
        names.add(label)
        # Only names of metrics may contain a colon.
        labels.append((label.replace(b":", b"_") if quoted is not None else label) + b"=" + value)
    end = line.find(b"}", address)
    if not name or end < 0:
        return b""
    return name + (b"{" + b",".join(labels) + b"}" if labels else b"") + _without_quoted_exemplar(line[end + 1 :])


def _without_quoted_exemplar(text: bytes) -> bytes:
    """Return the end of a line without an exemplar whose labels are quoted: no scheme covers these labels.

    Source: prometheus/common 0.67.
    """
    value, mark, exemplar = text.partition(b" # ")
    start = _START.match(exemplar)
    address = start.end() if start is not None else len(exemplar)
    while (item := _ITEM.match(exemplar, address)) is not None:
        if item[1] is not None:
            return value + b"\n"
        address = item.end()
    return value + mark + exemplar
