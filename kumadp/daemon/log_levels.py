"""Levels of the log, changed while everything runs: kumadp's own, those of its parts, and Envoy's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.parse import quote

import kumadp
from kumadp.errors import CommandRefused
from kumadp.host.log.line_formats import LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kumadp.envoy.admin import AdminClient
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.daemon")

ENVOY_LEVELS = ("trace", "debug", "info", "warning", "error", "critical", "off")
_OURS = {**LEVELS, "trace": logging.DEBUG, "critical": logging.CRITICAL}
_ROOT = "kumadp"
_WHAT = "one of " + ", ".join(ENVOY_LEVELS)


def envoy_level(settings: Settings) -> str:
    """The level that Envoy is started with."""
    level = settings.envoy_log_level or settings.log_level
    return "warning" if level == "warn" else level


class LogLevels:
    """``level`` and ``components`` (``relay``, ``envoy``, ``envoy.upstream``) are what was asked for; empty: settings.

    ``admin`` is where Envoy is told: it forgets when it is started again, so `tell_envoy` follows each start.
    """

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self.level = ""
        self.components: dict[str, str] = {}
        self.admin: Callable[[], AdminClient | None] = lambda: None

    def status(self) -> dict[str, object]:
        """JSON types."""
        settings = self._settings()
        envoy = self.components.get("envoy") or self.level or envoy_level(settings)
        return {
            "level": self.level or settings.log_level,
            "envoy_level": envoy,
            "components": {name: level for name, level in self.components.items() if name != "envoy"},
            "changed": bool(self.level or self.components),
        }

    def handed(self) -> dict[str, str]:
        """What was asked for, as `order` takes it."""
        return {**({"level": self.level} if self.level else {}), **self.components}

    def resume(self, asked: Mapping[str, str]) -> None:
        """Go on with what the program before us was asked for; an Envoy that goes on has it, another one is told."""
        self.level = asked.get("level", "")
        self.components = {name: level for name, level in asked.items() if name != "level"}
        if asked:
            self._tell_ours({})
            log.warning("log level, as before: %s", self._said())

    async def order(self, asked: Mapping[str, str]) -> Mapping[str, object]:
        """Take ``level`` and components, or ``reset``; raises CommandRefused, and nothing has changed then."""
        if "reset" in asked:
            level, components = "", {}
        else:
            level = asked.get("level", self.level)
            components = {**self.components, **{name: found for name, found in asked.items() if name != "level"}}
            _check(level, components)
        before = self.level, self.components
        self.level, self.components = level, components
        try:
            told = await self.tell_envoy()
        except CommandRefused:
            self.level, self.components = before
            raise
        self._tell_ours(before[1])
        said = self._said()
        # Also where the level is now one that shows little.
        log.warning("log level: %s", said)
        return {"said": said if told else f"{said}; Envoy will be told when it serves"}

    def _said(self) -> str:
        status = self.status()
        parts = self.components.items()
        more = "".join(f", {name} {level}" for name, level in parts if name != "envoy")
        return f"kumadp {status['level']}, envoy {status['envoy_level']}{more}"

    def _tell_ours(self, before: Mapping[str, str]) -> None:
        logging.getLogger(_ROOT).setLevel(_OURS[self.level or self._settings().log_level])
        for name in before:
            if not _is_envoy(name):
                logging.getLogger(f"{_ROOT}.{name}").setLevel(logging.NOTSET)
        for name, level in self.components.items():
            if not _is_envoy(name):
                logging.getLogger(f"{_ROOT}.{name}").setLevel(_OURS[level])

    async def tell_envoy(self) -> bool:
        """Have Envoy write by these levels; False where none can be asked. Raises CommandRefused where it refuses."""
        from kumadp.envoy.admin import AdminUnreachable

        admin, settings = self.admin(), self._settings()
        if admin is None:
            return False
        base = self.components.get("envoy") or self.level or envoy_level(settings)
        named = [one.partition(":")[::2] for one in settings.envoy_component_log_level.split(",") if ":" in one]
        wanted = dict(named if not self.components.get("envoy") and not self.level else ())
        wanted |= {
            name.partition(".")[2]: level for name, level in self.components.items() if name.startswith("envoy.")
        }
        try:
            for query in (("level", base), *wanted.items()):
                # Envoy docs, operations/admin: POST /logging takes one pair.
                code = await admin.post("/logging?{}={}".format(*(quote(part, safe="") for part in query)))
                if code != 200:
                    raise CommandRefused(f"Envoy does not know {query[0]}={query[1]}", "see its admin's /logging")
        except AdminUnreachable:
            return False
        return True

    async def follow(self) -> None:
        """Tell a new Envoy, where it was started by other levels than those that were asked for."""
        if self.level or self.components:
            try:
                await self.tell_envoy()
            except CommandRefused as error:
                log.warning("%s", error)


def _is_envoy(name: str) -> bool:
    return name == "envoy" or name.startswith("envoy.")


def _check(level: str, components: Mapping[str, str]) -> None:
    wrong = [f"{found!r} is no level" for found in (level, *components.values()) if found and found not in ENVOY_LEVELS]
    parts = known_parts()
    wrong += [f"{name!r} is no part of kumadp" for name in components if not _is_envoy(name) and name not in parts]
    if wrong:
        raise CommandRefused("; ".join(wrong), f"{_WHAT}; parts: envoy, envoy.<logger>, {', '.join(parts)}")


def known_parts() -> list[str]:
    """The parts of kumadp that have a log of their own."""
    import pkgutil

    return sorted(
        found.name for found in pkgutil.iter_modules(kumadp.__path__) if found.ispkg and found.name != "envoy"
    )
