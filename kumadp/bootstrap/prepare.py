"""Preparation of a bootstrap for Envoy: rewritten for the relay, checked by the guard, written to the work directory.

A start, a reload and `kumadp doctor` share it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from kumadp.bootstrap.fields import get
from kumadp.host.log.secrets import holds_secret
from kumadp.host.private_file import write_json
from kumadp.host.work_dir import BOOTSTRAP_FILE, reporting_write_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from kumadp.bootstrap.admin_address import AdminAddress
    from kumadp.bootstrap.rewrite import Upstream
    from kumadp.host.net.ports import BindAddress
    from kumadp.host.work_dir import WorkDir
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.bootstrap")


class Aggregated(NamedTuple):
    """An application whose metrics a Mesh or Dataplane names; ``address`` empty: the data plane's own."""

    name: str
    address: str
    port: int
    path: str


class Fetched(Struct, frozen=True):
    """A bootstrap as the control plane at ``url`` sent it; ``at`` in seconds since 1970.

    ``address`` is the data plane's, as registered with the control plane; empty in those that an older kumadp stored.
    ``aggregate``: applications whose metrics are scraped unless a MeshMetric policy replaces them. ``dataplane``: the
    digest of the resource that it was requested with (`kumadp.resources.wire.digest`), empty if unknown.
    """

    tree: dict[str, Any]
    corefile_template: str | None
    at: float
    url: str = ""
    address: str = ""
    aggregate: tuple[Aggregated, ...] = ()
    dataplane: str = ""


class Prepared(Struct, frozen=True):
    """A bootstrap on disk that passed the guard.

    ``dynamic``: its listeners come over xDS. ``fetched``: the control plane's original. ``upstream``: the control plane
    that the relay connects to.
    """

    config_path: Path
    admin: AdminAddress
    corefile_template: str | None
    dynamic: bool
    fetched: Fetched | None = None
    upstream: Upstream | None = None


class Target(Struct, frozen=True):
    """The directory to which bootstraps are written, and the ``taken`` addresses, which no admin may have."""

    work: WorkDir
    taken: Sequence[BindAddress]


async def prepare(
    tree: dict[str, Any], settings: Settings, target: Target, *, admin_port: int = 0, file: str = BOOTSTRAP_FILE
) -> Prepared:
    """Check a bootstrap with the guard and write it to ``file``.

    ``admin_port``: the one that the Dataplane names, 0: none. Raises KumadpError.
    """
    from kumadp.bootstrap.admin_guard import ReservedPort, guard

    reserved = [
        ReservedPort(address.host, address.port, address.purpose)
        for address in target.taken
        if address.protocol == "tcp"
    ]
    guarded = guard(tree, strict=settings.strict_admin, admin_port=admin_port, reserved=reserved)
    for warning in guarded.warnings:
        log.warning("%s", warning)
    path = target.work.path / file
    with reporting_write_errors(path):
        await asyncio.to_thread(write_json, path, guarded.bootstrap)
    if await asyncio.to_thread(_holds_secret, guarded.bootstrap):
        # Kuma 2.8 to 2.14 puts the token into it, for an Envoy without the relay.
        target.work.removed_at_end.add(path)
    resources = guarded.bootstrap.get("dynamicResources") or guarded.bootstrap.get("dynamic_resources") or {}
    dynamic = isinstance(resources, dict) and ("ldsConfig" in resources or "lds_config" in resources)
    return Prepared(path, guarded.admin, None, dynamic)


async def prepare_fetched(
    fetched: Fetched,
    settings: Settings,
    target: Target,
    *,
    relay: Path | None,
    admin_port: int = 0,
    file: str = BOOTSTRAP_FILE,
) -> Prepared:
    """Like `prepare`, for a control plane's bootstrap; ``relay`` is the socket that Envoy's xDS goes to, if any."""
    from kumadp.bootstrap.rewrite import rewrite_for_relay
    from kumadp.bootstrap.stat_tags import with_deferred_stats, with_fast_stat_tags

    tree, upstream = fetched.tree, None
    if relay is not None and get(tree, "dynamicResources", "adsConfig") is not None:
        rewritten = rewrite_for_relay(tree, str(relay))
        tree, upstream = rewritten.bootstrap, rewritten.upstream
        if rewritten.delta:
            log.info("the control plane offers delta xDS; kumadp's relay uses state of the world")
    if settings.stat_tags == "fast":
        tree = with_fast_stat_tags(tree)
    if settings.deferred_stats:
        tree = with_deferred_stats(tree)
    prepared = await prepare(tree, settings, target, admin_port=admin_port, file=file)
    return replace(prepared, corefile_template=fetched.corefile_template, fetched=fetched, upstream=upstream)


def _holds_secret(bootstrap: Mapping[str, Any]) -> bool:
    return holds_secret(json.dumps(bootstrap).encode())
