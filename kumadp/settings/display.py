"""Settings as they may be shown: secrets masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.settings.model import options_of
from kumadp.settings.values import write_value

if TYPE_CHECKING:
    from kumadp.settings.model import Settings
    from kumadp.settings.option import Option

MASK = "***"
_LONGEST = 200


def display(settings: Settings, command: str = "run") -> dict[str, str]:
    """What differs from the default, as a user would write it; a secret that is set shows as ``***``."""
    shown = {}
    for option in options_of(command):
        value = getattr(settings, option.field)
        if value != option.default:
            shown[option.name] = show(option, value)
    return shown


def show(option: Option, value: object) -> str:
    """A value in one line: masked where it is secret, its size alone where it is a whole document."""
    if option.secret:
        return MASK
    text = write_value(option.kind, value)
    if "-----BEGIN" in text:
        return "<PEM>"
    if "\n" in text or len(text) > _LONGEST:
        return f"<{len(text)} characters>"
    return text
