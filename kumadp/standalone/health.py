"""serviceProbe: kumadp asks the application itself, each inbound in a task of its own, so that none delays another."""

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

# Kuma's control plane fills these in for a serviceProbe that leaves them out.
INTERVAL, TIMEOUT, UNHEALTHY, HEALTHY = 1.0, 0.5, 5, 1


@dataclass(frozen=True, slots=True)
class ServiceCheck:
    """What is asked for one inbound."""

    inbound: InboundKey
    host: str
    port: int
    probe: ServiceProbe = field(hash=False)


def checks_of(mesh: Mesh) -> frozenset[ServiceCheck]:
    """The checks that the inbounds of our Dataplane ask for."""
    found = set()
    for inbound in mesh.spec.networking.inbound:
        if inbound.service_probe is not None and inbound.state != "Ignored":
            found.add(ServiceCheck(inbound_key(mesh, inbound), *workload(mesh, inbound), inbound.service_probe))
    return frozenset(found)


class HealthWatch:
    """Runs the checks; ``changed`` is called when the set of unhealthy inbounds changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.unhealthy: frozenset[InboundKey] = frozenset()
        self._changed = changed
        self._tasks: dict[ServiceCheck, asyncio.Task[None]] = {}

    def follow(self, checks: frozenset[ServiceCheck]) -> None:
        """Run exactly these checks from now on; an inbound that stays keeps its state until a check says otherwise."""
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
        # The first answer counts by itself: an application that has not started yet gets no traffic.
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
        where = f"{check.host}:{check.port}"
        log.warning("the application at %s is %s", where, "healthy again" if healthy else "unhealthy: no connection")
        inbound = frozenset({check.inbound})
        self._set(self.unhealthy - inbound if healthy else self.unhealthy | inbound)

    def _set(self, unhealthy: frozenset[InboundKey]) -> None:
        if unhealthy != self.unhealthy:
            self.unhealthy = unhealthy
            self._changed()


async def _connects(host: str, port: int, timeout: float) -> bool | None:
    """Whether it can be connected to; None where this process has no descriptor left to try with."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        return None if is_exhausted(error) else False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
