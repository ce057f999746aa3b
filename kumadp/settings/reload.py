"""The settings that a reload applies. Each option in `kumadp.settings.model` declares whether it is reloadable."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import msgspec.structs

from kumadp.settings.model import options_of

if TYPE_CHECKING:
    from kumadp.settings.model import Settings


@functools.cache
def reloadable() -> frozenset[str]:
    """Field names of the options whose new value a reload applies."""
    return frozenset(option.field for option in options_of("run") if option.reload)


def reloaded(current: Settings, new: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings in force after a reload, and the options that have changed but need a restart.

    Those options keep their ``current`` value, and are named as a user gives them: by flag, else by variable.
    """
    changed = [option for option in options_of("run") if getattr(current, option.field) != getattr(new, option.field)]
    applied = {option.field: getattr(new, option.field) for option in changed if option.reload}
    return msgspec.structs.replace(current, **applied), tuple(option.name for option in changed if not option.reload)
