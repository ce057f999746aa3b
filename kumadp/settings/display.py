"""Settings as text for the log, with secrets masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.settings.model import options_of
from kumadp.settings.values import write_value

if TYPE_CHECKING:
    from kumadp.settings.model import Settings
    from kumadp.settings.option import Option

MASK = "***"
_MAX_SHOWN = 200


def display(settings: Settings, command: str = "run") -> dict[str, str]:
    """Return the options that differ from their default, as a user would write them; secrets are shown as ``***``."""
    values = {}
    for option in options_of(command):
        value = getattr(settings, option.field)
        if value != option.default:
            values[option.name] = show(option, value)
    return values


def show(option: Option, value: object) -> str:
    """Return a value on one line: masked if it is secret, only its size if it is a whole document."""
    if option.secret:
        return MASK
    text = write_value(option.kind, value)
    if "-----BEGIN" in text:
        return "<PEM>"
    if "\n" in text or len(text) > _MAX_SHOWN:
        return f"<{len(text)} characters>"
    return text
