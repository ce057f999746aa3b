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
_LONGEST_BLANKS = 500
_MOST_TAGS = 5000
_DEEPEST = 50
_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("'"): "&#39;", ord('"'): "&#34;"}


def render(text: str, variables: Mapping[str, str], source: str) -> str:
    """``text`` with its tags replaced (Kuma 2.8: dotted names nest, ``{{x}}`` is escaped, missing ones are empty).

    Raises ResourceError where the template cannot be read.
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
    """pystache takes quadratic time for many blanks in a row, and for many tags in a section."""
    told = ""
    if text.count("{{") > _MOST_TAGS:
        told = f"more than {_MOST_TAGS} template tags"
    elif any(found.end() - found.start() > _LONGEST_BLANKS for found in _BLANKS.finditer(text)):
        told = f"more than {_LONGEST_BLANKS} blanks in a row, in a template"
    if told:
        raise ResourceError([Problem("", f"it has {told}", file=source)])


def _check_tags(text: str, source: str) -> None:
    """pystache passes over a tag or section that never ends, and what follows is lost: such a template is refused."""
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
            if len(sections) > _DEEPEST:
                told = f"template sections are nested deeper than {_DEEPEST}"
                raise ResourceError([Problem("", told, "", source, line)])
        elif kind == "/" and (not sections or sections.pop()[0] != name):
            problems.append(Problem("", f"the template section {{{{/{name}}}}} was not opened", "", source, line))
    problems += [
        Problem("", f"the template section {{{{#{name}}}}} is never closed", f"write {{{{/{name}}}}}", source, line)
        for name, line in sections
    ]
    if problems:
        raise ResourceError(problems)


def nested(variables: Mapping[str, str]) -> dict[str, Any]:
    """``{"a.b": "c"}`` as ``{"a": {"b": "c"}}``."""
    tree: dict[str, Any] = {}
    for name, value in variables.items():
        *parents, last = name.split(".")
        place = tree
        for parent in parents:
            below = place.get(parent)
            if not isinstance(below, dict):
                below = place[parent] = {}
            place = below
        place[last] = value
    return tree
