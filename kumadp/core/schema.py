"""Pieces of the status schema that every part's section uses."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Time = Annotated[float, Meta(description="Seconds since 1970.")]


def field(text: str) -> Meta:
    """Return the description of a field."""
    return Meta(description=text)
