"""Envoy as a component: started, watched until it serves, proven private, started again."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
from typing import TYPE_CHECKING

import httpx

from kumadp.envoy.admin import AdminClient
from kumadp.envoy.proof import prove_private
from kumadp.errors import AdminExposed
from kumadp.process.supervise import Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from kumadp.bootstrap.address import AdminAddress
    from kumadp.process.child import Child, Command, ExitStatus
    from kumadp.process.policy import RestartPolicy
    from kumadp.process.supervise import ChildReport

log = logging.getLogger("kumadp.envoy")

_FIRST_POLL = 0.02
_LONGEST_POLL = 0.25
_STATS = r"^listener_manager\.(lds\.update_(success|rejected)|total_listeners_(active|warming)|workers_started)$"
# Envoy's API: ServerInfo.State.
_WAITS_FOR = {"PRE_INITIALIZING": ": it waits for clusters", "INITIALIZING": ": it waits for listeners and routes"}
# What Envoy prints when no restart can help: 1.40, and the older form.
_CONFIGURATION_ERRORS = (
    re.compile(r"error `(?P<why>.+?)`\s+initializing config", re.DOTALL),
    re.compile(r"error initializing configuration '[^']*': (?P<why>[^\n]+)"),
)
# protobuf marks texts that are for people with such a word and uneven spaces.
_NOISE = re.compile(r"goo\.gle/debug\w+")
# A port may be free at the next try.
_PASSING = "cannot bind"


def configuration_error(lines: Sequence[str]) -> str | None:
    """Why Envoy refused its configuration, in one line, by the last lines it printed; None where it did not."""
    text = "\n".join(lines)
    for pattern in _CONFIGURATION_ERRORS:
        if found := pattern.search(text):
            why = " ".join(_NOISE.sub("", found["why"]).split())
            return None if why.startswith(_PASSING) else why
    return None


class EnvoyComponent:
    """Runs Envoy. ``reason`` hears why it does not serve yet, "" once it does; ``changed`` hears each state.

    ``leaving`` says whether everything is about to stop: an Envoy that ends then is not started again, since a new one
    would take traffic that nobody drains.
    """

    name = "envoy"

    def __init__(
        self,
        command: Callable[[], Awaitable[Command]],
        admin: AdminAddress,
        policy: RestartPolicy,
        *,
        grace: float,
        dynamic: bool,
        changed: Callable[[ChildReport], None],
        reason: Callable[[str], None],
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.admin = AdminClient(admin)
        self._address = admin
        self._dynamic = dynamic
        self._reason = reason
        self._leaving = leaving
        self._was_live = False
        self._gone = asyncio.Event()
        self._changed = changed
        self.supervisor = Supervisor(
            self.name, command, policy, self._bring_up, permanent=self._permanent, changed=self._on_change, grace=grace
        )

    @property
    def runs(self) -> bool:
        """Whether there is a process now."""
        return self.supervisor.report.pid is not None

    async def run(self, up: Callable[[], None]) -> None:
        """Keep Envoy running until cancelled; raises ChildFailed or AdminExposed."""
        try:
            await self.supervisor.run(up)
        finally:
            self._gone.set()
            await self.admin.close()

    async def gone(self) -> None:
        """Return once Envoy has ended."""
        await self._gone.wait()

    async def fail_health_checks(self) -> None:
        """``POST /healthcheck/fail``; raises OSError when Envoy does not take it."""
        await self._post("/healthcheck/fail")

    async def drain_inbound(self) -> None:
        """Drain inbound listeners and stay (Kuma 2.8: what SIGUSR2 asks for)."""
        await self._post("/drain_listeners?inboundonly&graceful&skip_exit")

    async def _post(self, path: str) -> None:
        try:
            status = await self.admin.post(path)
        except httpx.HTTPError as error:
            raise OSError(f"POST {path}: {str(error) or type(error).__name__}") from None
        if status != 200:
            raise OSError(f"POST {path} was answered with {status}")

    def _on_change(self, report: ChildReport) -> None:
        if report.pid is None and report.state.name not in {"STARTING"}:
            self._gone.set()
            if report.last_exit:
                self._reason(report.last_exit)
        elif report.pid is not None:
            self._gone.clear()
        self._changed(report)

    async def _bring_up(self, child: Child) -> None:
        pause = _FIRST_POLL
        while not await self._serves():
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, _LONGEST_POLL)
        try:
            await prove_private(child.pid, self._address)
        except AdminExposed:
            child.send_signal(signal.SIGKILL)
            await child.wait()
            raise
        self._was_live = True
        self._reason("")

    async def _serves(self) -> bool:
        try:
            live, state = await self.admin.ready()
            if not live:
                self._reason(f"Envoy is {state or 'not ready'}{_WAITS_FOR.get(state, '')}")
                return False
            stats = await self.admin.stats(_STATS)
            return await self._has_listeners(stats)
        except (httpx.HTTPError, ValueError, AttributeError, KeyError, TypeError):
            # A stranger may have the port for a moment, and answer anything.
            self._reason("Envoy's admin does not answer yet")
            return False

    async def _has_listeners(self, stats: dict[str, int]) -> bool:
        value = {name.removeprefix("listener_manager."): number for name, number in stats.items()}
        if not value.get("workers_started"):
            self._reason("Envoy's workers have not started")
            return False
        if value.get("total_listeners_warming"):
            self._reason(f"{value['total_listeners_warming']} listeners are warming")
            return False
        if not self._dynamic or value.get("lds.update_success"):
            return True
        if value.get("lds.update_rejected"):
            if value.get("total_listeners_active"):
                log.warning("Envoy rejected some listeners: %s", await self._rejection())
                return True
            self._reason(f"Envoy rejected the listeners: {await self._rejection()}")
            return False
        self._reason("no listeners from the control plane yet")
        return False

    async def _rejection(self) -> str:
        try:
            _, body = await self.admin.get("/config_dump?resource=dynamic_listeners")
            entries = json.loads(body).get("configs", [])
        except (httpx.HTTPError, ValueError):
            return "unknown"
        told = [
            f"{entry.get('name')}: {entry['error_state'].get('details')}" for entry in entries if "error_state" in entry
        ]
        return "; ".join(told) or "unknown"

    def _permanent(self, status: ExitStatus, lines: list[str]) -> str | None:
        if self._leaving():
            return "it is not started again, as everything stops"
        if self._was_live or status.code in {None, 0}:
            return None
        why = configuration_error(lines)
        return f"its configuration is wrong: {why}" if why else None
