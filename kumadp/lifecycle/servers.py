"""What kumadp serves itself: readiness, the control socket, virtual probes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
from typing import TYPE_CHECKING

from kumadp.addresses import is_ip
from kumadp.lifecycle.plan import LOOPBACK, plan_probes
from kumadp.resources.types import Dataplane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.lifecycle.component import Stack
    from kumadp.lifecycle.control import Action
    from kumadp.lifecycle.plan import ProbesPlan
    from kumadp.lifecycle.status import Status
    from kumadp.resources.load import Resource
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.lifecycle")

# How long the name in networking.address is asked for, where virtual probes need its address (seconds).
NAME_DEADLINE = 5.0


async def resolved_probes(
    settings: Settings, resource: Resource | None, environ: Mapping[str, str], status: Status
) -> ProbesPlan | None:
    """Where virtual probes are served, by address; None where they are not, the reason being told."""
    spec = resource.spec if resource is not None else None
    plan, why = plan_probes(settings, spec if isinstance(spec, Dataplane) else None, environ)
    if why:
        log.info("%s", why)
    if plan is None or is_ip(plan.host):
        return plan
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(NAME_DEADLINE):
            found = await loop.getaddrinfo(plan.host, plan.port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or f"no answer within {NAME_DEADLINE:.0f} s"
        story = f"networking.address {plan.host} cannot be resolved: {reason}; name one with --virtual-probes-address"
        status.note_fatal("virtual probes", story)
        return None
    return dataclasses.replace(plan, host=str(found[0][4][0]))


def start_servers(
    stack: Stack, status: Status, port: int, environ: Mapping[str, str], actions: Mapping[str, Action]
) -> None:
    """Readiness on loopback at ``port``, and the owner-only control socket; raises PortsTaken, WorkDirError."""
    from kumadp.lifecycle.control import ControlServer, control_socket_path
    from kumadp.lifecycle.readiness import ReadinessServer

    stack.start(ReadinessServer(LOOPBACK, port, lambda: status.ready_state))
    status.ports["readiness"] = f"http://{LOOPBACK}:{port}/ready"
    try:
        path = control_socket_path(status.name, environ)
    except OSError as error:
        log.warning("no control socket: %s", error)
        return
    stack.start(ControlServer(path, status.snapshot, actions))


def start_probes(stack: Stack, status: Status, plan: ProbesPlan, resource: Resource | None) -> None:
    """Virtual probes by the plan; raises PortsTaken."""
    from kumadp.probes.virtual import Routes, VirtualProbes, routes_of

    spec = resource.spec if resource is not None else None
    generic = plan.generic_ports or not isinstance(spec, Dataplane)
    routes = Routes({}, plan.generic_ports) if generic or not isinstance(spec, Dataplane) else routes_of(spec)
    stack.start(VirtualProbes(plan.host, plan.port, routes))
    host = f"[{plan.host}]" if ":" in plan.host else plan.host
    status.ports["virtual probes"] = f"http://{host}:{plan.port}"
