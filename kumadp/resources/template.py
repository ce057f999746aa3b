"""Mustache in resources, as kuma-dp renders it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from kumadp.errors import Problem, ResourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Go's html escaping (html/template.HTMLEscapeString), which Kuma's mustache library uses.
_TAG = re.compile(r"\{\{(?:\{(?P<raw>[^{}\n]*)\}|(?P<kind>[#^/!>&=]?)(?P<name>[^{}]*))\}\}")
_BLANKS = re.compile(r"[ \t]++")
_MAX_BLANKS = 500
_MAX_TAGS = 5000
_MAX_DEPTH = 50
_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("'"): "&#39;", ord('"'): "&#34;"}


def render(text: str, variables: Mapping[str, str], source: str) -> str:
    """Replace the tags of ``text`` (Kuma 2.8: dotted names nest, ``{{x}}`` is escaped, missing variables are empty).

    Raises ResourceError if the template is invalid.
    """
    if "{{" not in text:
        return text
    _check_size(text, source)
    _check_tags(text, source)
    import pystache
    from pystache.parser import ParsingError

    renderer = pystache.Renderer(escape=lambda value: value.translate(_ESCAPES), missing_tags="ignore")
    try:
        rendered = renderer.render(text, nested(variables))
    except RecursionError:
        raise ResourceError([Problem("", "the template sections are nested too deep", file=source)]) from None
    except (ParsingError, LookupError, ValueError, AttributeError, TypeError) as error:
        raise ResourceError([Problem("", f"the mustache template cannot be read: {error}", file=source)]) from None
    return str(rendered)


def _check_size(text: str, source: str) -> None:
    """Limit tags and blanks, because pystache takes quadratic time for many blanks in a row or tags in a section."""
    excess = ""
    if text.count("{{") > _MAX_TAGS:
        excess = f"more than {_MAX_TAGS} template tags"
    elif any(match.end() - match.start() > _MAX_BLANKS for match in _BLANKS.finditer(text)):
        excess = f"more than {_MAX_BLANKS} blanks in a row, in a template"
    if excess:
        raise ResourceError([Problem("", f"it has {excess}", file=source)])


def _check_tags(text: str, source: str) -> None:
    """Reject tags and sections without an end: pystache would drop them with all text that follows."""
    problems: list[Problem] = []
    sections: list[tuple[str, int]] = []
    position, line, counted = 0, 1, 0
    while (start := text.find("{{", position)) >= 0:
        line += text.count("\n", counted, start)
        counted = start
        tag = _TAG.match(text, start)
        if tag is None:
            problems.append(Problem("", "a template tag {{ is never closed", "write {{name}}", source, line))
            break
        position = tag.end()
        kind, name = tag["kind"], (tag["name"] or "").strip()
        if kind in {"#", "^"}:
            sections.append((name, line))
            if len(sections) > _MAX_DEPTH:
                message = f"template sections are nested deeper than {_MAX_DEPTH}"
                raise ResourceError([Problem("", message, "", source, line)])
        elif kind == "/" and (not sections or sections.pop()[0] != name):
            problems.append(Problem("", f"the template section {{{{/{name}}}}} was not opened", "", source, line))
    problems += [
        Problem("", f"the template section {{{{#{name}}}}} is never closed", f"write {{{{/{name}}}}}", source, line)
        for name, line in sections
    ]
    if problems:
        raise ResourceError(problems)


def nested(variables: Mapping[str, str]) -> dict[str, Any]:
    """Convert ``{"a.b": "c"}`` to ``{"a": {"b": "c"}}``."""
    tree: dict[str, Any] = {}
    for name, value in variables.items():
        *parents, last = name.split(".")
        branch = tree
        for parent in parents:
            below = branch.get(parent)
            if not isinstance(below, dict):
                below = branch[parent] = {}
            branch = below
        branch[last] = value
    return tree
