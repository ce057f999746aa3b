"""serviceProbe: kumadp checks the application of each inbound in a separate task, so that none delays another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kumadp.host.descriptors import is_exhausted
from kumadp.resources.types import seconds
from kumadp.standalone.generator import inbound_key, workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from kumadp.resources.types import ServiceProbe
    from kumadp.standalone.generator import InboundKey
    from kumadp.standalone.mesh import Mesh

log = logging.getLogger("kumadp.standalone")

# Kuma's control plane uses these defaults for a serviceProbe.
INTERVAL, TIMEOUT, UNHEALTHY, HEALTHY = 1.0, 0.5, 5, 1


@dataclass(frozen=True, slots=True)
class ServiceCheck:
    """The check of one inbound: connects to ``host`` and ``port`` as ``probe`` requires."""

    inbound: InboundKey
    host: str
    port: int
    probe: ServiceProbe = field(hash=False)


def checks_of(mesh: Mesh) -> frozenset[ServiceCheck]:
    """Return the checks that our Dataplane requires."""
    checks = set()
    for inbound in mesh.spec.networking.inbound:
        if inbound.service_probe is not None and inbound.state != "Ignored":
            checks.add(ServiceCheck(inbound_key(mesh, inbound), *workload(mesh, inbound), inbound.service_probe))
    return frozenset(checks)


class HealthWatch:
    """Runs the checks; ``on_change`` is called when the set of unhealthy inbounds changes."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.unhealthy: frozenset[InboundKey] = frozenset()
        self._on_change = on_change
        self._tasks: dict[ServiceCheck, asyncio.Task[None]] = {}

    def follow(self, checks: frozenset[ServiceCheck]) -> None:
        """Run exactly these checks from now on; an inbound keeps its state until a check changes it."""
        for check in self._tasks.keys() - checks:
            self._tasks.pop(check).cancel()
        self._set(self.unhealthy & {check.inbound for check in checks})
        for check in checks - self._tasks.keys():
            self._tasks[check] = asyncio.get_running_loop().create_task(self._run(check), name=f"probe {check.port}")

    async def close(self) -> None:
        """End all checks."""
        tasks = list(self._tasks.values())
        self.follow(frozenset())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, check: ServiceCheck) -> None:
        probe = check.probe
        interval, timeout = seconds(probe.interval, INTERVAL), seconds(probe.timeout, TIMEOUT)
        # The first result needs no threshold: an application that has not started yet gets no traffic.
        streak, first = 0, True
        while True:
            healthy = check.inbound not in self.unhealthy
            good = await _connects(check.host, check.port, timeout)
            if good is None:
                await asyncio.sleep(interval)
                continue
            streak = streak + 1 if good != healthy else 0
            needed = (probe.unhealthy_threshold or UNHEALTHY) if healthy else (probe.healthy_threshold or HEALTHY)
            if streak >= (1 if first else needed):
                streak = 0
                self._note(check, good)
            first = False
            await asyncio.sleep(interval)

    def _note(self, check: ServiceCheck, healthy: bool) -> None:
        address = f"{check.host}:{check.port}"
        log.warning("the application at %s is %s", address, "healthy again" if healthy else "unhealthy: no connection")
        inbound = frozenset({check.inbound})
        self._set(self.unhealthy - inbound if healthy else self.unhealthy | inbound)

    def _set(self, unhealthy: frozenset[InboundKey]) -> None:
        if unhealthy != self.unhealthy:
            self.unhealthy = unhealthy
            self._on_change()


async def _connects(host: str, port: int, timeout: float) -> bool | None:
    """Return whether a connection succeeds; None if this process has no file descriptor left to try."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        return None if is_exhausted(error) else False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
