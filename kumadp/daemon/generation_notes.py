"""What the user set and has no effect with the control plane at hand: logged once its generation is known."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kumadp.bootstrap.generation import Generation
from kumadp.core.part import Part
from kumadp.settings.kuma_2 import only_for_kuma_2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.core.context import Context
    from kumadp.errors import Problem
    from kumadp.resources.resource import Resource
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.daemon")


def without_effect(generation: Generation | None, settings: Settings, origins: Mapping[str, str]) -> str:
    """Return one sentence about the options without effect with this control plane; empty if there are none."""
    if generation is not Generation.KUMA_3:
        return ""
    names = only_for_kuma_2(settings, origins)
    return f"without effect with this control plane, which is of Kuma 3: {', '.join(names)}" if names else ""


def fields_without_effect(generation: Generation | None, resource: Resource | None) -> list[Problem]:
    """Return the fields of the Dataplane that this control plane accepts and ignores."""
    if generation is not Generation.KUMA_3 or resource is None:
        return []
    from kumadp.resources import validate

    return validate.fields_without_effect(resource, "3.0")


def log_new_notes(generation: Generation | None, present: Resource | None, reloaded: Resource | None) -> None:
    """Log what is remarkable about a Dataplane that was read again, and was not so about the present one.

    The notes of both are compared without their lines, which change with any edit.
    """
    known = {(note.path, note.message) for note in _all_notes(generation, present)}
    for note in _all_notes(generation, reloaded):
        if (note.path, note.message) not in known:
            log.warning("%s", note)


def _all_notes(generation: Generation | None, resource: Resource | None) -> list[Problem]:
    return [*(resource.notes if resource is not None else ()), *fields_without_effect(generation, resource)]


class GenerationNotesPart(Part):
    """Logs options and fields without effect each time that the control plane is of another generation."""

    name = "generation notes"

    def __init__(self, context: Context) -> None:
        self._context = context

    def on_generation(self, generation: Generation) -> None:
        """Log what has no effect: one line about options, one about fields."""
        context = self._context
        if note := without_effect(generation, context.settings, context.origins):
            log.warning("%s", note)
        if fields := fields_without_effect(generation, context.resource):
            log.warning("the control plane is of Kuma 3: %s", "; ".join(map(str, fields)))
