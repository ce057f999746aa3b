"""Whether anybody is still connected for the workload's sake."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx

from kumadp.bootstrap.fields import get

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.envoy.admin import AdminClient

# Envoy has no event for it (seconds).
_PAUSE = 0.25
# Listeners of the control plane's own, by how their names begin (Kuma 2.8 to 2.14, with and without unified naming):
# admin, dynamic configuration, metrics, probes, DNS.
_NOT_WORKLOAD = ("kuma:", "_kuma", "system_", "self_", "probe:")
_ACTIVE = ".downstream_cx_active"
_STATS = r"^listener\..*\.downstream_cx_active$"


def workload_connections(listeners: Mapping[str, Any], stats: Mapping[str, int]) -> int:
    """Connections to listeners that carry the workload's traffic, in and out; scrapers and probes do not count.

    ``listeners`` is Envoy's answer to ``/listeners?format=json``, ``stats`` has of each
    ``listener.<address>.downstream_cx_active`` (Envoy docs: listener statistics; ``:`` in an address is ``_`` there).
    """
    others = {"admin"}
    for found in listeners.get("listener_statuses", ()):
        if str(found.get("name", "")).startswith(_NOT_WORKLOAD):
            others |= {_stat_name(address) for address in _addresses(found)}
    return sum(
        active
        for name, active in stats.items()
        if name.endswith(_ACTIVE) and _counts(name.removeprefix("listener.").removesuffix(_ACTIVE), others)
    )


def _counts(name: str, others: set[str]) -> bool:
    # With a stat prefix of its own the name of the listener is that of the statistic; threads are counted twice.
    threads = any(part == "main_thread" or part.startswith("worker_") for part in name.split("."))
    return name not in others and not threads and not name.startswith(_NOT_WORKLOAD)


def _addresses(listener: Mapping[str, Any]) -> list[str]:
    every = [listener.get("local_address"), *listener.get("additional_local_addresses", ())]
    sockets = [get(address, "socket_address") for address in every if isinstance(address, dict)]
    return [_text(one) for one in sockets if isinstance(one, dict)]


def _text(address: Mapping[str, Any]) -> str:
    host, port = str(address.get("address", "")), address.get("port_value", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _stat_name(address: str) -> str:
    return address.replace(":", "_")


async def until_idle(admin: AdminClient) -> None:
    """Return once the workload has no connection; never where the admin does not answer."""
    while True:
        try:
            _, body = await admin.get("/listeners?format=json")
            if workload_connections(json.loads(body), await admin.stats(_STATS)) == 0:
                return
        except (httpx.HTTPError, ValueError):
            pass
        await asyncio.sleep(_PAUSE)
