"""The state of an Envoy by its admin: whether it serves, and why not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from kumadp.decoding import decode_json
from kumadp.envoy.admin import AdminUnreachable
from kumadp.envoy.admin_exposure import addresses_of
from kumadp.process.progress import ProgressWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from kumadp.envoy.admin import AdminClient

log = logging.getLogger("kumadp.envoy")

# A stranger may have the port for a moment, and answer anything.
_NO_ANSWER = (AdminUnreachable, ValueError, AttributeError, KeyError, TypeError)
_WARMING = r"^listener_manager\.total_listeners_warming$"
# Of what Envoy printed, in characters: the reason is at its end.
_LONGEST_OUTPUT = 64 << 10
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
# How long an Envoy that serves may neither answer nor make progress before a reload of it (seconds).
_ANSWER_IDLE = 5.0
_WORKERS = r"^listener_manager\.workers_started$"
_STATS = r"^listener_manager\.(lds\.update_(success|rejected)|total_listeners_(active|warming)|workers_started)$"
# What shows that an Envoy that comes up moves, by the words for it (Envoy docs: cluster and listener manager).
_COUNTED = {
    "cluster_manager.warming_clusters": "clusters warming",
    "cluster_manager.active_clusters": "clusters ready",
    "listener_manager.total_listeners_warming": "listeners warming",
    "listener_manager.total_listeners_active": "listeners ready",
}
_COUNTS = f"^({'|'.join(_COUNTED)})$".replace(".", r"\.")
# Envoy's API: ServerInfo.State.
_WAITS_FOR = {"PRE_INITIALIZING": ": it waits for clusters", "INITIALIZING": ": it waits for listeners and routes"}
# What Envoy prints when no restart can help: 1.40, and the older form.
_ERROR, _END_OF_ERROR = "error `", re.compile(r"`\s++initializing config")
_OLD_ERROR = re.compile(r"error initializing configuration '[^'\n]*+': ([^\n]+)")
# protobuf marks texts that are for people with such a word and uneven spaces.
_NOISE = re.compile(r"goo\.gle/debug\w+")
# A port may be free at the next try.
_PASSING = "cannot bind"


def configuration_error(lines: Sequence[str]) -> str | None:
    """Return in one line why Envoy refused its configuration, from the last lines it printed; None if it did not."""
    text = "\n".join(lines)[-_LONGEST_OUTPUT:]
    start, end = text.find(_ERROR), _END_OF_ERROR.search(text)
    if end is not None and 0 <= start < end.start() - len(_ERROR):
        why = text[start + len(_ERROR) : end.start()]
    elif old := _OLD_ERROR.search(text):
        why = old[1]
    else:
        return None
    why = " ".join(_NOISE.sub("", why).split())
    return None if why.startswith(_PASSING) else why


class ServerInfo(Struct, frozen=True):
    """Fields of ``/server_info``: ``state`` as in LIVE, ``protocol`` of hot restart as in 11.104."""

    epoch: int
    state: str
    protocol: str
    workers: int


class ServerState:
    """Queries an Envoy's admin. ``on_not_ready`` gets the reason why it does not serve."""

    def __init__(self, admin: AdminClient, on_not_ready: Callable[[str], None]) -> None:
        self._admin = admin
        self._on_not_ready = on_not_ready

    async def serves(self, *, dynamic: bool, drained: bool = False) -> bool:
        """Return whether Envoy is LIVE with its listeners, with those of the control plane if it is ``dynamic``.

        ``drained``: it may also be DRAINING, as one whose health checks fail on request.
        """
        try:
            live, state = await self._admin.ready()
            if not live and not (drained and state == "DRAINING"):
                self._on_not_ready(f"Envoy is {state or 'not ready'}{_WAITS_FOR.get(state, '')}")
                return False
            stats = await self._admin.stats(_STATS)
            return await self._has_listeners(stats, dynamic=dynamic)
        except _NO_ANSWER:
            self._on_not_ready("Envoy's admin does not answer yet")
            return False

    async def _has_listeners(self, stats: dict[str, int], *, dynamic: bool) -> bool:
        value = {name.removeprefix("listener_manager."): number for name, number in stats.items()}
        if not value.get("workers_started"):
            self._on_not_ready("Envoy's workers have not started")
            return False
        if value.get("total_listeners_warming"):
            self._on_not_ready(f"{value['total_listeners_warming']} listeners are warming")
            return False
        if not dynamic or value.get("lds.update_success"):
            return True
        if value.get("lds.update_rejected"):
            if value.get("total_listeners_active"):
                log.warning("Envoy rejected some listeners: %s", await self._rejection())
                return True
            self._on_not_ready(f"Envoy rejected the listeners: {await self._rejection()}")
            return False
        self._on_not_ready("no listeners from the control plane yet")
        return False

    async def _rejection(self) -> str:
        try:
            _, body = await self._admin.get("/config_dump?resource=dynamic_listeners")
            entries = decode_json(body).get("configs", [])
        except (AdminUnreachable, ValueError):
            return "unknown"
        reasons = [
            f"{entry.get('name')}: {entry['error_state'].get('details')}" for entry in entries if "error_state" in entry
        ]
        return "; ".join(reasons) or "unknown"

    async def counts(self, timeout: float) -> dict[str, int]:
        """Return what an Envoy that comes up has, and waits for, within ``timeout`` seconds; empty if not known.

        Envoy matches each of its statistics for this, of which a large mesh has many.
        """
        try:
            stats = await self._admin.gauges(_COUNTS, timeout)
        except _NO_ANSWER:
            return {}
        return {_COUNTED[name]: number for name, number in stats.items() if name in _COUNTED}

    async def settled(self, deadline: float) -> None:
        """Return once no listener is warming, or after ``deadline`` seconds."""
        pause = _FIRST_PAUSE
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                while await self._warming():
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)

    async def _warming(self) -> bool:
        try:
            return any((await self._admin.gauges(_WARMING)).values())
        except _NO_ANSWER:
            return True

    async def listener_addresses(self, names: Collection[str]) -> set[tuple[str, int]] | None:
        """Return hosts and ports of the listeners of these names; None if the admin does not answer."""
        try:
            _, body = await self._admin.get("/listeners?format=json")
            statuses = decode_json(body)["listener_statuses"]
            return {address for status in statuses if status["name"] in names for address in addresses_of(status)}
        except _NO_ANSWER:
            return None

    async def info(self) -> ServerInfo | None:
        """Return what ``/server_info`` reports, None if the admin does not answer."""
        try:
            _, body = await self._admin.get("/server_info", timeout=1.0)
            fields = decode_json(body)
            options = fields["command_line_options"]
            epoch, workers = int(options["restart_epoch"]), int(options["concurrency"])
            return ServerInfo(epoch, str(fields["state"]), str(fields["hot_restart_version"]), workers)
        except _NO_ANSWER:
            return None

    async def renewed(self, known: ServerInfo | None, pid: int | None) -> ServerInfo | None:
        """Return what ``/server_info`` reports, or else what is ``known`` of it.

        If nothing is known, an Envoy that is too busy to answer is waited for while it makes progress; ``pid`` None: it
        has no admin.
        """
        info = await self.info() or known
        if info is not None or pid is None:
            return info
        overdue = asyncio.ensure_future(ProgressWatch(_ANSWER_IDLE).overdue(pid))
        try:
            while (info := await self.info()) is None and not overdue.done():
                await asyncio.wait({overdue}, timeout=_FIRST_PAUSE)
            return info
        finally:
            overdue.cancel()

    async def took_over(self, epoch: int) -> bool | None:
        """Return whether this epoch is LIVE, and so has the listeners; None if nothing answers.

        Until it has the admin, the old one answers.
        """
        info = await self.info()
        if info is None:
            return None
        if info.epoch != epoch:
            return False
        if info.state != "LIVE":
            self._on_not_ready(f"the new Envoy is {info.state}{_WAITS_FOR.get(info.state, '')}")
            return False
        try:
            return bool((await self._admin.gauges(_WORKERS)).get("listener_manager.workers_started"))
        except _NO_ANSWER:
            return None

    async def addresses(self) -> frozenset[str] | None:
        """Return where Envoy listens, as JSON texts; None if its admin does not answer."""
        try:
            _, body = await self._admin.get("/listeners?format=json")
            return frozenset(_addresses(decode_json(body)))
        except _NO_ANSWER:
            return None


def _addresses(listeners: dict[str, Any]) -> list[str]:
    addresses = []
    for status in listeners["listener_statuses"]:
        for address in (status["local_address"], *status.get("additional_local_addresses", ())):
            addresses.append(json.dumps(address, sort_keys=True))
    return addresses
