"""Counts the connections that carry the workload's traffic."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Literal

from kumadp.addresses import with_port
from kumadp.bootstrap.fields import get
from kumadp.decoding import decode_json
from kumadp.envoy.admin import AdminUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.envoy.admin import AdminClient

Direction = Literal["both", "inbound", "outbound"]
# Seconds between queries: Envoy has no event for it.
_PAUSE = 0.25
# How the names of listeners begin that the control plane adds for itself (Kuma 2.8 to 2.14, and with unified naming,
# which is the only one in 3.0): admin, dynamic configuration, metrics, probes, DNS. Statistics of one on a Unix socket
# are named by its path.
_NOT_WORKLOAD = ("kuma:", "_kuma", "system_", "probe:", "/", "@")
# Others lead to outbounds. Zone proxies have only traffic that comes in (3.0: Dataplanes with `networking.listeners`).
_INBOUND = (
    "inbound:",
    "kri_dp_",
    "self_inbound_",
    "self_transparentproxy_passthrough_inbound_",
    "self_zoneingress_",
    "self_zoneegress_",
)
_ACTIVE = ".downstream_cx_active"
_ADDRESS = re.compile(r"\[|\d+\.\d+\.\d+\.\d+_")
STATS = r"^listener\..*\.downstream_cx_active$"


def workload_connections(listeners: Mapping[str, Any], stats: Mapping[str, int], direction: Direction = "both") -> int:
    """Count the connections to listeners that carry the workload's traffic of this direction, not scrapers and probes.

    ``listeners`` is Envoy's answer to ``/listeners?format=json``, ``stats`` has of each
    ``listener.<address>.downstream_cx_active`` (Envoy docs: listener statistics; ``:`` in an address is ``_`` there).
    """
    others = {"admin"}
    for status in listeners.get("listener_statuses", ()):
        if not _is_of(str(status.get("name", "")), direction):
            others |= {_stat_name(address) for address in _addresses(status)}
    return sum(
        active
        for name, active in stats.items()
        if name.endswith(_ACTIVE) and _counts(name.removeprefix("listener.").removesuffix(_ACTIVE), others, direction)
    )


def _is_of(name: str, direction: Direction) -> bool:
    """Return whether a listener carries the workload's traffic of this direction, by its name."""
    if name.startswith(_NOT_WORKLOAD):
        return False
    return direction == "both" or name.startswith(_INBOUND) is (direction == "inbound")


def _counts(name: str, others: set[str], direction: Direction) -> bool:
    # With its own stat prefix the name of the listener is that of the statistic; threads are counted twice.
    threads = any(part == "main_thread" or part.startswith("worker_") for part in name.split("."))
    if name in others or threads:
        return False
    # A name that begins with an address is already sorted by its listener.
    return _is_of(name, "both" if _ADDRESS.match(name) else direction)


def _addresses(listener: Mapping[str, Any]) -> list[str]:
    every = [listener.get("local_address"), *listener.get("additional_local_addresses", ())]
    sockets = [get(address, "socket_address") for address in every if isinstance(address, dict)]
    return [_text(address) for address in sockets if isinstance(address, dict)]


def _text(address: Mapping[str, Any]) -> str:
    host, port = str(address.get("address", "")), address.get("port_value", 0)
    return with_port(host, port)


def _stat_name(address: str) -> str:
    return address.replace(":", "_")


async def until_idle(admin: AdminClient, direction: Direction = "both", pause: float = _PAUSE) -> None:
    """Return once the workload has no connection of this direction; never if the admin does not answer."""
    while True:
        try:
            _, body = await admin.get("/listeners?format=json")
            if workload_connections(decode_json(body), await admin.stats(STATS), direction) == 0:
                return
        except (AdminUnreachable, ValueError):
            pass
        await asyncio.sleep(pause)
