"""What Envoy's admin shows of its clusters, from which follows whether it has rejected those that it does not answer.

Envoy 1.40 keeps a cluster that it rejects late among those that warm, and sends nothing about clusters until then; its
admin shows them, and the version that it has accepted last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, field

from kumadp.decoding import Undecodable, decode_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Of clusters that warm, and the version accepted. In this order: what warms was processed before.
WARMING = "/config_dump?resource=dynamic_warming_clusters"
VERSION = "/stats?format=json&type=TextReadouts&filter=%5Ecluster_manager%5C.cds%5C.version_text%24"
_NAME = "cluster_manager.cds.version_text"


class ClusterReport(Struct, frozen=True):
    """``version``: of the clusters that Envoy accepted last, empty if there is none; ``warming``: names."""

    version: str
    warming: frozenset[str]


class _Cluster(Struct):
    name: str = ""


class _Warming(Struct):
    cluster: _Cluster = field(default_factory=_Cluster)


class _Dump(Struct):
    configs: list[_Warming] = field(default_factory=list)


class _Stat(Struct):
    name: str = ""
    value: str = ""


class _Stats(Struct):
    stats: list[_Stat] = field(default_factory=list)


async def query_clusters(get: Callable[[str], Awaitable[bytes | None]]) -> ClusterReport | None:
    """Query the admin by ``get``, which returns a body or None; return None if there is no usable answer."""
    if (dump := await get(WARMING)) is None or (stats := await get(VERSION)) is None:
        return None
    try:
        warming = decode_json(dump, _Dump).configs
        versions = [each.value for each in decode_json(stats, _Stats).stats if each.name == _NAME]
    except Undecodable:
        return None
    if not versions:
        return None
    return ClusterReport(versions[0], frozenset(each.cluster.name for each in warming))
