"""Settings as they may be shown: secrets masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kumadp.settings.model import options_of
from kumadp.settings.values import write_value

if TYPE_CHECKING:
    from kumadp.settings.model import Settings

MASK = "***"


def display(settings: Settings, command: str = "run") -> dict[str, str]:
    """What differs from the default, as a user would write it; a secret that is set shows as ``***``.

    The resource itself is left out: it may hold anything, and the log says its name.
    """
    shown = {}
    for option in options_of(command):
        value = getattr(settings, option.field)
        if value == option.default or option.field == "dataplane":
            continue
        name = option.flags[0] if option.flags else option.variables[0]
        if option.secret:
            shown[name] = MASK
        elif "-----BEGIN" in str(value):
            shown[name] = "<PEM>"
        else:
            shown[name] = write_value(option.kind, value)
    return shown
