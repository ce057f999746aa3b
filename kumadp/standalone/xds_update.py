"""Brings a generated configuration into force through files: clusters, then listeners, each confirmed by Envoy."""

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

APPLIED_WITHIN = 5.0
ANSWERS_WITHIN = 1.0
# A cluster with health checks warms until each endpoint has answered; silent ones delay an update by this (seconds).
WARM_WITHIN = 0.5
_FIRST_POLL, _LONGEST_POLL = 0.01, 0.25
CDS, LDS = "cluster_manager.cds", "listener_manager.lds"
_SCOPES = {CLUSTERS_FILE: CDS, LISTENERS_FILE: LDS}
_STATS = (
    r"/stats?format=json&filter=^(cluster_manager\.(cds\.(version_text|update_(attempt|rejected))|warming_clusters)"
    r"|listener_manager\.lds\.(version_text|update_(attempt|rejected)))$"
)


class EnvoyAdmin(Protocol):
    """The requests to Envoy's admin. Any Exception means that there was no answer."""

    async def get(self, path: str, timeout: float = 5.0) -> tuple[int, bytes]:
        """Return status and body."""


class UpdateRejected(Exception):
    """Envoy rejected a change; the message has the field of the Dataplane and the reason."""


class UpdateUnconfirmed(Exception):
    """All files are written, but Envoy has not confirmed them yet: it is down, starting or busy."""


async def apply(config: GeneratedConfig, previous: GeneratedConfig, files: XdsFiles, admin: EnvoyAdmin) -> bool:
    """Bring Envoy from ``previous`` to ``config``; True when something was written.

    A cluster is added before the listener that routes to it, and removed after the last such listener.

    Raises UpdateRejected, with Envoy's reason and the field of the Dataplane, and UpdateUnconfirmed: call again later
    with the same arguments.
    """
    changed = False
    unconfirmed: UpdateUnconfirmed | None = None
    for name, content in (
        (CLUSTERS_FILE, cluster_file({**previous.clusters, **config.clusters})),
        (LISTENERS_FILE, listener_file(config)),
        (CLUSTERS_FILE, cluster_file(config.clusters)),
    ):
        stats = await _stats(admin) if unconfirmed is None else {}
        written = await asyncio.to_thread(files.write, name, content)
        changed = changed or written
        if files.is_confirmed(name) or unconfirmed is not None:
            continue
        if not written and (failed := await _failed_listeners(admin, config)):
            # An earlier call was not confirmed: the rejection came too late to be recognised by the statistics.
            files.confirm(name)
            raise UpdateRejected(failed)
        try:
            await _await_confirmation(admin, name, files, stats, config, previous)
        except UpdateUnconfirmed as error:
            unconfirmed = error
    if unconfirmed is not None:
        raise unconfirmed
    return changed


async def _await_confirmation(
    admin: EnvoyAdmin, name: str, files: XdsFiles, stats: Json, config: GeneratedConfig, previous: GeneratedConfig
) -> None:
    """Wait until Envoy has applied or rejected a file; ``stats`` are those before it was written."""
    scope, loop, pause = _SCOPES[name], asyncio.get_running_loop(), _FIRST_POLL
    start, stats_before = loop.time(), stats
    while stats and loop.time() < start + APPLIED_WITHIN:
        stats = await _stats(admin)
        if stats.get(f"{scope}.version_text") == files.version(name):
            if not stats.get("cluster_manager.warming_clusters") or loop.time() > start + WARM_WITHIN:
                files.confirm(name)
                return
        elif _was_rejected(stats, scope, stats_before):
            files.confirm(name)
            raise UpdateRejected(await _rejection(admin, name, config, previous))
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_POLL)
    if not stats:
        raise UpdateUnconfirmed("Envoy does not answer")
    raise UpdateUnconfirmed(f"Envoy has not applied the change within {APPLIED_WITHIN:.0f} s")


def _was_rejected(stats: Json, scope: str, before: Json) -> bool:
    attempts, rejected = f"{scope}.update_attempt", f"{scope}.update_rejected"
    # Fewer attempts than before: another Envoy, which counts from 0.
    same = stats.get(attempts, 0) >= before.get(attempts, 0)
    return bool(stats.get(rejected, 0) > (before.get(rejected, 0) if same else 0))


async def _stats(admin: EnvoyAdmin) -> Json:
    """Return the statistics by name; empty if the admin does not answer."""
    try:
        _, body = await admin.get(_STATS, timeout=ANSWERS_WITHIN)
        return {entry["name"]: entry["value"] for entry in decode_json(body)["stats"] if "name" in entry}
    except Exception:
        return {}


async def _rejection(admin: EnvoyAdmin, name: str, config: GeneratedConfig, previous: GeneratedConfig) -> str:
    if name == LISTENERS_FILE:
        return await _failed_listeners(admin, config) or "Envoy rejected the listeners without a reason; see its log"
    # Envoy keeps no error for clusters: any changed cluster may be the rejected one.
    new = [key for key, cluster in config.clusters.items() if previous.clusters.get(key) != cluster]
    fields = "; ".join(dict.fromkeys(config.origin.get(key, key) for key in new))
    return f"{fields}: Envoy rejected a cluster; its log has the reason"


async def _failed_listeners(admin: EnvoyAdmin, config: GeneratedConfig) -> str:
    failures = []
    for entry in await _dump(admin, "/config_dump?resource=dynamic_listeners"):
        name, state = str(entry.get("name")), entry.get("error_state")
        if state and name in config.listeners:
            details = " ".join(str(state.get("details")).split())
            failures.append(f"{config.origin.get(name, name)}: rejected by Envoy: {details}")
    return "; ".join(dict.fromkeys(failures))


async def _dump(admin: EnvoyAdmin, path: str) -> list[Json]:
    try:
        _, body = await admin.get(path, timeout=2.0)
        configs = decode_json(body).get("configs", [])
    except Exception:
        return []
    return [entry for entry in configs if isinstance(entry, dict)]
