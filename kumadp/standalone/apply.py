"""Hands a generated configuration to Envoy through files: endpoints, then clusters, then listeners, each awaited."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Protocol

from kumadp.bootstrap.store import write_private
from kumadp.standalone.generate import files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kumadp.standalone.generate import Generated
    from kumadp.standalone.shapes import Json

log = logging.getLogger("kumadp.standalone")

TAKEN_WITHIN = 5.0
_POLL = 0.02
CDS, LDS = "cluster_manager.cds", "listener_manager.lds"
_DUMPS = {CDS: "/config_dump?resource=dynamic_warming_clusters", LDS: "/config_dump?resource=dynamic_listeners"}


class Admin(Protocol):
    """What is asked of Envoy's admin."""

    async def get(self, path: str, timeout: float = 5.0) -> tuple[int, bytes]:
        """Status and body."""

    async def stats(self, pattern: str) -> dict[str, int]:
        """Counters by name."""


class Rejected(Exception):
    """Envoy did not take a change; the message says what of it and why."""


class Files:
    """The files that Envoy watches, in a private directory; ``write`` may be called before Envoy runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._written: dict[str, bytes] = {}

    def write(self, contents: Mapping[str, Json]) -> list[str]:
        """Write what differs from the last time; returns the names. May block."""
        changed = []
        for name, content in contents.items():
            data = json.dumps(content).encode()
            if self._written.get(name) != data:
                write_private(self.directory / name, data)
                self._written[name] = data
                changed.append(name)
        return changed

    def differs(self, name: str, content: Json) -> bool:
        """Whether writing ``content`` would change the file."""
        return self._written.get(name) != json.dumps(content).encode()


async def apply(made: Generated, held: Files, admin: Admin) -> bool:
    """Bring Envoy to ``made``; True when something changed. Raises Rejected, with Envoy's words and our field.

    A listener that names a cluster which Envoy does not know yet is refused and not tried again, so clusters are
    awaited first.
    """
    contents = files(made)
    endpoints = {name: content for name, content in contents.items() if name.startswith("endpoints-")}
    changed = bool(await asyncio.to_thread(held.write, endpoints))
    for name, scope in (("clusters.json", CDS), ("listeners.json", LDS)):
        if not held.differs(name, contents[name]):
            continue
        changed = True
        before = await _counters(admin, scope)
        await asyncio.to_thread(held.write, {name: contents[name]})
        await _taken(admin, scope, before, made)
    return changed


async def _counters(admin: Admin, scope: str) -> tuple[int, int]:
    stats = await admin.stats(rf"^{scope}\.update_(success|rejected)$")
    return stats.get(f"{scope}.update_success", 0), stats.get(f"{scope}.update_rejected", 0)


async def _taken(admin: Admin, scope: str, before: tuple[int, int], made: Generated) -> None:
    deadline = asyncio.get_running_loop().time() + TAKEN_WITHIN
    while asyncio.get_running_loop().time() < deadline:
        success, rejected = await _counters(admin, scope)
        if rejected > before[1]:
            raise Rejected(await explain(admin, scope, made))
        if success > before[0]:
            if scope == LDS and (why := await _failed_listeners(admin, made)):
                raise Rejected(why)
            return
        await asyncio.sleep(_POLL)
    raise Rejected(f"Envoy did not take the change within {TAKEN_WITHIN:.0f} s")


async def explain(admin: Admin, scope: str, made: Generated) -> str:
    """Why the last update was rejected, each with the file and field it came from."""
    if scope == LDS and (why := await _failed_listeners(admin, made)):
        return why
    entries = await _dump(admin, _DUMPS[scope])
    told = [
        _named(str(entry.get("name")), str(entry["error_state"].get("details")), made)
        for entry in entries
        if "error_state" in entry
    ]
    return "; ".join(told) or "Envoy rejected the change without a word; its log says more"


async def _failed_listeners(admin: Admin, made: Generated) -> str:
    told = []
    for entry in await _dump(admin, _DUMPS[LDS]):
        state = entry.get("error_state")
        if state and str(entry.get("name")) in made.listeners:
            told.append(_named(str(entry.get("name")), str(state.get("details")), made))
    return "; ".join(told)


async def _dump(admin: Admin, path: str) -> list[Json]:
    try:
        _, body = await admin.get(path)
        found = json.loads(body).get("configs", [])
    except ValueError:
        return []
    return [entry for entry in found if isinstance(entry, dict)]


def _named(name: str, details: str, made: Generated) -> str:
    return f"{made.origin.get(name, name)}: Envoy says: {details}"
