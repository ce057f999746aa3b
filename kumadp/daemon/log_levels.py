"""Levels of the log, changed while everything runs: kumadp's own, those of its features, and Envoy's."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

import kumadp
from kumadp.core.epochs import EpochObserver
from kumadp.core.part import Handed, Part
from kumadp.envoy.argv import envoy_level
from kumadp.errors import CommandRefused
from kumadp.host.log.line_formats import LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.core.context import Context
    from kumadp.core.previous import Previous
    from kumadp.envoy.admin import AdminClient

log = logging.getLogger("kumadp.daemon")

ENVOY_LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")
_OURS = {**LEVELS, "trace": logging.DEBUG, "critical": logging.CRITICAL}
_ROOT = "kumadp"
_WHAT = "one of " + ", ".join(ENVOY_LEVELS)


class LogLevelsSection(msgspec.Struct, frozen=True):
    """The requested levels, as `LogLevelsPart.order` takes them."""

    levels: dict[str, str] = {}


class LogLevelsPart(Part, EpochObserver):
    """The section ``log`` of the status, and levels that are changed while everything runs.

    ``level`` and ``components`` (``relay``, ``envoy``, ``envoy.upstream``) are what was requested; empty: settings.
    ``admin`` gives the admin of the Envoy that serves: Envoy forgets its levels when it is started again, so they are
    sent to each epoch. ``output`` is the status of the log's output.
    """

    name = "log levels"

    def __init__(
        self, context: Context, admin: Callable[[], AdminClient | None], output: Callable[[], Mapping[str, object]]
    ) -> None:
        self._context = context
        self._admin = admin
        self._output = output
        self.level = ""
        self.components: dict[str, str] = {}

    def status(self) -> Mapping[str, object]:
        """Return the section ``log``."""
        return {"log": {**self._output(), **self.levels()}}

    def levels(self) -> dict[str, object]:
        """Return the levels in force; JSON types."""
        settings = self._context.settings
        envoy = self.components.get("envoy") or self.level or envoy_level(settings)
        return {
            "level": self.level or settings.log_level,
            "envoy_level": envoy,
            "components": {name: level for name, level in self.components.items() if name != "envoy"},
            "changed": bool(self.level or self.components),
        }

    def hand_over(self) -> Handed:
        """Return what was requested."""
        level = {"level": self.level} if self.level else {}
        return Handed(LogLevelsSection({**level, **self.components}))

    @classmethod
    def section_type(cls) -> type[msgspec.Struct]:
        """Return the type of its section of a handover."""
        return LogLevelsSection

    def adopt(self, previous: Previous) -> None:
        """Apply what was requested of the previous program; an adopted Envoy has it already, another one gets it."""
        section = previous.section(self.name, LogLevelsSection)
        requested = section.levels if section is not None else {}
        self.level = requested.get("level", "")
        self.components = {name: level for name, level in requested.items() if name != "level"}
        if requested:
            self._set_ours({})
            log.warning("log level, as before: %s", self._summary())

    async def order(self, requested: Mapping[str, str]) -> Mapping[str, object]:
        """Apply ``level`` and components, or ``reset``; raises CommandRefused, and nothing has changed then."""
        if "reset" in requested:
            level, components = "", {}
        else:
            level = requested.get("level", self.level)
            components = {**self.components, **{name: found for name, found in requested.items() if name != "level"}}
            _check(level, components)
        previous = self.level, self.components
        self.level, self.components = level, components
        try:
            sent = await self.send_to_envoy()
        except CommandRefused:
            self.level, self.components = previous
            raise
        self._set_ours(previous[1])
        summary = self._summary()
        # Also if the level is now one that shows little.
        log.warning("log level: %s", summary)
        return {"said": summary if sent else f"{summary}; Envoy gets it when it serves"}

    def _summary(self) -> str:
        levels = self.levels()
        parts = self.components.items()
        more = "".join(f", {name} {level}" for name, level in parts if name != "envoy")
        return f"kumadp {levels['level']}, envoy {levels['envoy_level']}{more}"

    def _set_ours(self, previous: Mapping[str, str]) -> None:
        logging.getLogger(_ROOT).setLevel(_OURS[self.level or self._context.settings.log_level])
        for name in previous:
            if not _is_envoy(name):
                logging.getLogger(f"{_ROOT}.{name}").setLevel(logging.NOTSET)
        for name, level in self.components.items():
            if not _is_envoy(name):
                logging.getLogger(f"{_ROOT}.{name}").setLevel(_OURS[level])

    async def send_to_envoy(self) -> bool:
        """Have Envoy log by these levels; False if none can be reached. Raises CommandRefused if it rejects them."""
        from kumadp.envoy.admin import AdminUnreachable

        admin, settings = self._admin(), self._context.settings
        if admin is None:
            return False
        base = self.components.get("envoy") or self.level or envoy_level(settings)
        named = [one.partition(":")[::2] for one in settings.envoy_component_log_level.split(",") if ":" in one]
        levels = dict(named if not self.components.get("envoy") and not self.level else ())
        levels |= {
            name.partition(".")[2]: level for name, level in self.components.items() if name.startswith("envoy.")
        }
        try:
            for query in (("level", base), *levels.items()):
                # Envoy docs, operations/admin: POST /logging takes one pair.
                code = await admin.post("/logging?{}={}".format(*(quote(part, safe="") for part in query)))
                if code != 200:
                    raise CommandRefused(f"Envoy does not know {query[0]}={query[1]}", "see its admin's /logging")
        except AdminUnreachable:
            return False
        return True

    def on_epoch_live(self, epoch: int) -> None:
        """Send the levels to a new epoch."""
        del epoch
        self._following = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        """Send the levels to a new Envoy, if others were requested than those that it was started with."""
        if self.level or self.components:
            try:
                await self.send_to_envoy()
            except CommandRefused as error:
                log.warning("%s", error)


def _is_envoy(name: str) -> bool:
    return name == "envoy" or name.startswith("envoy.")


def _check(level: str, components: Mapping[str, str]) -> None:
    wrong = [f"{found!r} is no level" for found in (level, *components.values()) if found and found not in ENVOY_LEVELS]
    parts = logging_features()
    wrong += [f"{name!r} is no part of kumadp" for name in components if not _is_envoy(name) and name not in parts]
    if wrong:
        raise CommandRefused("; ".join(wrong), f"{_WHAT}; parts: envoy, envoy.<logger>, {', '.join(parts)}")


def logging_features() -> list[str]:
    """Return the features of kumadp that have their own log."""
    import pkgutil

    packages = {module.name for module in pkgutil.iter_modules(kumadp.__path__) if module.ispkg}
    return sorted(packages - {"core", "envoy"})
