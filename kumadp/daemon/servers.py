"""What kumadp serves itself: readiness, the control socket, virtual probes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
from typing import TYPE_CHECKING, Any

from kumadp.addresses import address_text, is_ip
from kumadp.daemon.ports import LOOPBACK, plan_probes
from kumadp.daemon.readiness import ReadinessServer, readiness_host
from kumadp.errors import PortsTaken, Problem, SettingsError
from kumadp.host.net.serve import bind_tcp, bind_unix
from kumadp.host.reexec import inherited_sockets as inherited
from kumadp.host.socket_names import READINESS, kuma_socket
from kumadp.resources.types import Dataplane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kumadp.core.component import Stack
    from kumadp.core.context import Run
    from kumadp.core.status import Status
    from kumadp.daemon.control import Action
    from kumadp.daemon.ports import ProbesPlan
    from kumadp.resources.load import Resource
    from kumadp.settings.model import Settings

log = logging.getLogger("kumadp.daemon")

# How long the name in networking.address is asked for, where virtual probes need its address (seconds).
NAME_DEADLINE = 5.0


async def resolved_probes(
    settings: Settings, resource: Resource | None, environ: Mapping[str, str], status: Status
) -> ProbesPlan | None:
    """Where virtual probes are served, by address; None where they are not, with the reason logged.

    Raises SettingsError where an address that was named for them cannot be resolved.
    """
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
    except (OSError, UnicodeError) as error:
        # A name with a label that no name can have is a UnicodeError.
        reason = "not a host name" if isinstance(error, UnicodeError) else getattr(error, "strerror", None)
        reason = reason or f"no answer within {NAME_DEADLINE:.0f} s"
        if settings.virtual_probes_address:
            message = f"{plan.host} cannot be resolved: {reason}"
            raise SettingsError(
                [Problem("--virtual-probes-address", message, "name an address of this host")]
            ) from None
        story = f"networking.address {plan.host} cannot be resolved: {reason}; name one with --virtual-probes-address"
        status.mark_failed("virtual probes", story)
        return None
    return dataclasses.replace(plan, host=address_text(found[0][4]))


def start_servers(run: Run, actions: Mapping[str, Action]) -> ReadinessPort:
    """Readiness, and the owner-only control socket; raises PortsTaken, WorkDirError."""
    from kumadp.daemon.control import ControlServer, control_socket_path

    readiness = ReadinessPort(run)
    try:
        path = control_socket_path(run.name, run.environ, run.work.path)
    except OSError as error:
        log.warning("no control socket: %s", error)
    else:
        control = ControlServer(path, run.status.snapshot, actions, {"log-level": run.levels.order})
        control.pages["/metrics"] = run.measuring.page
        run.stack.start(control)
    return readiness


class ReadinessPort:
    """``/ready`` on loopback from the first moment, on a socket that control planes of 2.12 and 2.13 ask, and where the
    bootstrap wants it. Raises PortsTaken, WorkDirError.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._port = run.settings.readiness_port
        self._loopback = self._bind(LOOPBACK)
        self._start("readiness", self._loopback, f"http://{LOOPBACK}:{self._port}/ready")
        if run.mesh is None and not run.settings.readiness_unix_socket_disabled:
            path = kuma_socket(run.work.sockets, READINESS)
            self._start("readiness socket", bind_unix(path), str(path))
            inherited.register_probed("unix", str(path), 0)

    def widen(self, bootstrap: Mapping[str, Any], address: str) -> None:
        """Serve where this bootstrap wants it too; ``address`` is the data plane's. What cannot be costs that alone."""
        host = readiness_host(bootstrap, address, self._run.environ)
        if not is_ip(host) or host == LOOPBACK:
            return
        name = f"readiness on {host}"
        try:
            sock = self._bind(host, beside=self._loopback)
        except PortsTaken as error:
            self._run.status.mark_failed(name, str(error))
            return
        self._start(name, sock, f"http://{f'[{host}]' if ':' in host else host}:{self._port}/ready")

    def _bind(self, host: str, beside: socket.socket | None = None) -> socket.socket:
        inherited.register_probed("tcp", host, self._port)
        return bind_tcp(host, self._port, "KUMA_READINESS_PORT", beside=beside)

    def _start(self, name: str, sock: socket.socket, shown: str) -> None:
        status = self._run.status
        self._run.stack.start(ReadinessServer(name, sock, lambda: status.ready_state))
        status.ports[name] = shown


def start_probes(stack: Stack, status: Status, plan: ProbesPlan, resource: Resource | None) -> None:
    """Virtual probes by the plan; raises PortsTaken."""
    from kumadp.probes.virtual_probes import ProbeRoutes, VirtualProbes, routes_of

    spec = resource.spec if resource is not None else None
    generic = plan.generic_ports or not isinstance(spec, Dataplane)
    routes = ProbeRoutes({}, plan.generic_ports) if generic or not isinstance(spec, Dataplane) else routes_of(spec)
    probes = VirtualProbes(plan.host, plan.port, routes)
    status.counters[probes.name] = probes.answered
    stack.start(probes)
    host = f"[{plan.host}]" if ":" in plan.host else plan.host
    status.ports["virtual probes"] = f"http://{host}:{plan.port}"
