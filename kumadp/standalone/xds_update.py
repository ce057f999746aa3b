"""Hands a generated configuration to Envoy through files: clusters, then listeners, each awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from kumadp.decoding import decode_json
from kumadp.host.work_dir import CLUSTERS_FILE, LISTENERS_FILE
from kumadp.standalone.generator import cluster_file, listener_file

if TYPE_CHECKING:
    from kumadp.standalone.config_fragments import Json
    from kumadp.standalone.generated_config import GeneratedConfig
    from kumadp.standalone.xds_files import XdsFiles

TAKEN_WITHIN = 5.0
ANSWERS_WITHIN = 1.0
# A cluster whose endpoints are checked warms until each has answered; a silent one is not waited for.
WARM_WITHIN = 0.5
_FIRST_POLL, _LONGEST_POLL = 0.01, 0.25
CDS, LDS = "cluster_manager.cds", "listener_manager.lds"
_SCOPES = {CLUSTERS_FILE: CDS, LISTENERS_FILE: LDS}
_STATS = (
    r"/stats?format=json&filter=^(cluster_manager\.(cds\.(version_text|update_(attempt|rejected))|warming_clusters)"
    r"|listener_manager\.lds\.(version_text|update_(attempt|rejected)))$"
)


class EnvoyAdmin(Protocol):
    """What is asked of Envoy's admin. Any Exception of it means that there was no answer."""

    async def get(self, path: str, timeout: float = 5.0) -> tuple[int, bytes]:
        """Status and body."""


class UpdateRejected(Exception):
    """Envoy did not take a change; the message says what of it and why."""


class UpdateUnconfirmed(Exception):
    """Everything is written, and Envoy has not said yet that it took it: it is down, starting or busy."""


async def apply(made: GeneratedConfig, before: GeneratedConfig, held: XdsFiles, admin: EnvoyAdmin) -> bool:
    """Bring Envoy from ``before`` to ``made``; True when something was written.

    A cluster is added before the listener that routes to it, and removed after the last such listener.

    Raises UpdateRejected, with Envoy's reason and the field of the Dataplane, and UpdateUnconfirmed: call again later
    with the same arguments.
    """
    changed = False
    unconfirmed: UpdateUnconfirmed | None = None
    for name, content in (
        (CLUSTERS_FILE, cluster_file({**before.clusters, **made.clusters})),
        (LISTENERS_FILE, listener_file(made)),
        (CLUSTERS_FILE, cluster_file(made.clusters)),
    ):
        stats = await _stats(admin) if unconfirmed is None else {}
        written = await asyncio.to_thread(held.write, name, content)
        changed = changed or written
        if held.is_confirmed(name) or unconfirmed is not None:
            continue
        if not written and (failed := await _failed_listeners(admin, made)):
            # Asked before in vain: the refusal came too late to be seen as one.
            held.confirm(name)
            raise UpdateRejected(failed)
        try:
            await _await_answer(admin, name, held, stats, made, before)
        except UpdateUnconfirmed as error:
            unconfirmed = error
    if unconfirmed is not None:
        raise unconfirmed
    return changed


async def _await_answer(
    admin: EnvoyAdmin, name: str, held: XdsFiles, stats: Json, made: GeneratedConfig, before: GeneratedConfig
) -> None:
    """Wait for Envoy's answer to a file just written; ``stats`` are from before."""
    scope, loop, pause = _SCOPES[name], asyncio.get_running_loop(), _FIRST_POLL
    start, was = loop.time(), stats
    while stats and loop.time() < start + TAKEN_WITHIN:
        stats = await _stats(admin)
        if stats.get(f"{scope}.version_text") == held.version(name):
            if not stats.get("cluster_manager.warming_clusters") or loop.time() > start + WARM_WITHIN:
                held.confirm(name)
                return
        elif _was_rejected(stats, scope, was):
            held.confirm(name)
            raise UpdateRejected(await _explain(admin, name, made, before))
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_POLL)
    if not stats:
        raise UpdateUnconfirmed("Envoy does not answer")
    raise UpdateUnconfirmed(f"Envoy has not taken the change within {TAKEN_WITHIN:.0f} s")


def _was_rejected(now: Json, scope: str, was: Json) -> bool:
    attempts, rejected = f"{scope}.update_attempt", f"{scope}.update_rejected"
    # Fewer attempts than before: another Envoy, which counts from 0.
    same = now.get(attempts, 0) >= was.get(attempts, 0)
    return bool(now.get(rejected, 0) > (was.get(rejected, 0) if same else 0))


async def _stats(admin: EnvoyAdmin) -> Json:
    """By name; empty where the admin does not answer."""
    try:
        _, body = await admin.get(_STATS, timeout=ANSWERS_WITHIN)
        return {entry["name"]: entry["value"] for entry in decode_json(body)["stats"] if "name" in entry}
    except Exception:
        return {}


async def _explain(admin: EnvoyAdmin, name: str, made: GeneratedConfig, before: GeneratedConfig) -> str:
    if name == LISTENERS_FILE:
        return await _failed_listeners(admin, made) or "Envoy refused the listeners without a word; its log says more"
    # Envoy keeps no error for clusters: what was changed is what can be wrong.
    new = [key for key, cluster in made.clusters.items() if before.clusters.get(key) != cluster]
    said = "; ".join(dict.fromkeys(made.origin.get(key, key) for key in new))
    return f"{said}: Envoy refused a cluster; its log says why"


async def _failed_listeners(admin: EnvoyAdmin, made: GeneratedConfig) -> str:
    told = []
    for entry in await _dump(admin, "/config_dump?resource=dynamic_listeners"):
        name, state = str(entry.get("name")), entry.get("error_state")
        if state and name in made.listeners:
            told.append(f"{made.origin.get(name, name)}: Envoy says: {' '.join(str(state.get('details')).split())}")
    return "; ".join(dict.fromkeys(told))


async def _dump(admin: EnvoyAdmin, path: str) -> list[Json]:
    try:
        _, body = await admin.get(path, timeout=2.0)
        found = decode_json(body).get("configs", [])
    except Exception:
        return []
    return [entry for entry in found if isinstance(entry, dict)]
