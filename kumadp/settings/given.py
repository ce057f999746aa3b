"""A value that was given by a flag, a variable or the settings file, and its origin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from kumadp.errors import Problem
from kumadp.settings.values import BadValue, read_value

if TYPE_CHECKING:
    from kumadp.settings.option import Option


class GivenValue(Struct, frozen=True):
    """``origin`` is ``flag --name``, ``variable KUMA_NAME`` or ``file settings.yaml:3: dataplane.name``."""

    value: object
    origin: str

    @property
    def where(self) -> str:
        """The origin without its kind: what the user typed."""
        return self.origin.split(" ", 1)[1]


def parse(option: Option, text: str, origin: str, problems: list[Problem]) -> GivenValue | None:
    """Parse ``text`` as a value of ``option``; if it is not one, append to ``problems`` and return None."""
    try:
        return GivenValue(read_value(option.kind, text), origin)
    except BadValue as error:
        shown = "***" if option.secret else repr(text)
        problems.append(Problem(GivenValue(None, origin).where, f"{shown} {error}"))
        return None
