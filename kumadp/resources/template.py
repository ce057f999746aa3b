"""Mustache in resources, as kuma-dp renders it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kumadp.errors import Problem, ResourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

# Go's html escaping (html/template.HTMLEscapeString), which Kuma's mustache library uses.
_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;", ord("'"): "&#39;", ord('"'): "&#34;"}


def render(text: str, variables: Mapping[str, str], source: str) -> str:
    """``text`` with its tags replaced (Kuma 2.8: dotted names nest, ``{{x}}`` is escaped, missing ones are empty).

    Raises ResourceError where the template cannot be read.
    """
    if "{{" not in text:
        return text
    import pystache
    from pystache.parser import ParsingError

    renderer = pystache.Renderer(escape=lambda value: value.translate(_ESCAPES), missing_tags="ignore")
    try:
        rendered = renderer.render(text, nested(variables))
    except (ParsingError, KeyError, IndexError, ValueError, AttributeError) as error:
        raise ResourceError([Problem("", f"the mustache template cannot be read: {error}", file=source)]) from None
    return str(rendered)


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
