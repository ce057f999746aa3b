"""A relay on its own event loop, with real Envoys on its socket and the test control plane behind it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import ssl
import subprocess
from typing import TYPE_CHECKING, Any, Protocol

from kumadp.bootstrap.generation import requires_delta
from kumadp.bootstrap.rewrite import rewrite_for_relay
from kumadp.relay.dialect import XdsProtocol
from kumadp.relay.node import encode_node
from kumadp.relay.protocol_choice import ProtocolChoice
from kumadp.relay.relay import Relay, RelayOptions
from kumadp.relay.state_machine import RelayStateMachine
from kumadp.relay.upstream import Dial
from tests.support.control_planes import suited
from tests.support.daemon import Ports, get, get_at, workload
from tests.support.kuma_resources import dataplane, with_both
from tests.support.poll import poll
from tests.support.xds.envoy import DirectEnvoy, bootstrap_request, fetch_bootstrap
from tests.support.xds.loop import LoopThread
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kumadp.relay.snapshot import RelaySnapshot
    from tests.support.daemon import Workload
    from tests.support.xds.resources import Tree

NODE = "default.backend-01"


class Target(Protocol):
    """A control plane that a relay can connect to."""

    @property
    def ca(self) -> str:
        """The CA as PEM."""

    @property
    def xds_port(self) -> int:
        """On localhost."""

    def token(self) -> str:
        """A token for the data plane."""


class RunningRelay:
    """A `Relay` that runs; its methods are called on its loop by `call`."""

    def __init__(
        self,
        path: Path,
        bootstrap: Tree,
        plane: Target,
        make_loop: Callable[[], asyncio.AbstractEventLoop],
        *,
        protocol: XdsProtocol = XdsProtocol.SOTW,
        query: Callable[[], Tree] | None = None,
        get_admin: Callable[[str], bytes | None] | None = None,
        **machine: Any,
    ) -> None:
        self.plane = plane
        self.query = query
        self.token = plane.token()
        self.thread = LoopThread("relay", make_loop)
        self.machine = RelayStateMachine(encode_node(bootstrap["node"]), **machine)
        self.accepted: list[str] = []
        choice = ProtocolChoice(protocol, self.query_protocol)

        async def get_body(path: str) -> bytes | None:
            return await asyncio.to_thread(get_admin, path) if get_admin is not None else None

        options = RelayOptions(choice=choice, on_accepted=self.accepted.append, get_admin=get_body)
        self.relay = self.thread.call(
            lambda: Relay(path, self.machine, self.dial, epoch_of=lambda _pid: 0, options=options)
        )
        is_up = asyncio.Event()

        async def start() -> asyncio.Task[None]:
            task = asyncio.create_task(self.relay.run(is_up.set))
            await is_up.wait()
            return task

        self.task = self.thread.run(start())

    async def dial(self) -> Dial:
        context = ssl.create_default_context(cadata=self.plane.ca)
        return Dial((("localhost", self.plane.xds_port),), context, "localhost", self.token)

    async def query_protocol(self) -> XdsProtocol | None:
        """Request the bootstrap again, as the session does; None if there is none."""
        if self.query is None:
            return None
        try:
            bootstrap = await asyncio.to_thread(self.query)
        except OSError:
            return None
        self.machine.renew_node(encode_node(bootstrap["node"]))
        return _protocol(bootstrap)

    def call(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return self.thread.call(functools.partial(method, *arguments, **named))

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.call(self.relay.status)
        return status

    def wait_accepted(self, *types: str) -> None:
        def all_accepted() -> bool:
            return {view["type"] for view in self.status["types"] if view["accepted"]} >= set(types)

        poll(all_accepted, what=f"{types} accepted")

    def stop(self) -> RelaySnapshot:
        """Stop it and return its memory."""
        memory: RelaySnapshot = self.call(self.relay.snapshot)

        async def stop() -> None:
            self.task.cancel()
            await asyncio.wait({self.task})

        self.thread.run(stop())
        self.thread.close()
        return memory


def _protocol(bootstrap: Tree) -> XdsProtocol:
    return XdsProtocol.DELTA if requires_delta(bootstrap) else XdsProtocol.SOTW


class RelayStage:
    """A control plane, an application, and a bootstrap that leads Envoy to our socket."""

    def __init__(
        self, folder: Path, plane: XdsControlPlane, app: Workload, make_loop: Callable[[], asyncio.AbstractEventLoop]
    ) -> None:
        self.folder, self.plane, self.app, self.make_loop = folder, plane, app, make_loop
        self.ports = Ports.take()
        self.dataplane = suited(plane, dataplane("backend-01", "backend", self.ports, app.port, probes=False))
        self.path = folder / "xds.sock"
        self.use_bootstrap()
        self.envoys: list[RelayedEnvoy] = []
        self.relays: list[RunningRelay] = []

    def fetch_bootstrap(self) -> Tree:
        """Request the bootstrap of the control plane as it is now; raises OSError."""
        return fetch_bootstrap(self.plane, bootstrap_request(self.plane, "backend-01", self.dataplane, self.folder))

    def use_bootstrap(self) -> None:
        """Start relays and Envoys from now on with the bootstrap of the control plane as it is now."""
        fetched = self.fetch_bootstrap()
        self.protocol = _protocol(fetched)
        self.bootstrap = rewrite_for_relay(fetched, str(self.path)).bootstrap

    def suit_all(self) -> None:
        """Have a Dataplane that 2.13 to 3.0 take."""
        self.dataplane = with_both(dataplane("backend-01", "backend", self.ports, self.app.port, probes=False))
        self.use_bootstrap()

    def relay(self, **machine: Any) -> RunningRelay:
        relay = RunningRelay(
            self.path,
            self.bootstrap,
            self.plane,
            self.make_loop,
            protocol=self.protocol,
            query=self.fetch_bootstrap,
            get_admin=self.get_admin,
            **{"queries": True, **machine},
        )
        self.relays.append(relay)
        return relay

    def get_admin(self, path: str) -> bytes | None:
        """Return what the admin of the newest Envoy answers."""
        try:
            status, text = get_at(self.envoys[-1].admin, path)
        except OSError:
            return None
        return text.encode() if status == 200 else None

    def stop(self, relay: RunningRelay) -> RelaySnapshot:
        self.relays.remove(relay)
        return relay.stop()

    def envoy(self, relay: RunningRelay | None = None, epoch: int = 0, *arguments: str) -> RelayedEnvoy:
        envoy = RelayedEnvoy(self.folder, self.bootstrap, epoch)
        envoy.arguments += arguments
        envoy.start()
        self.envoys.append(envoy)
        if relay is not None:
            envoy.belongs_to(relay)
        return envoy

    def serves(self) -> bool:
        return get(self.ports.outbound) == (200, "backend")

    def wait_traffic(self, deadline: float = 30.0) -> None:
        poll(self.serves, what="traffic through the mesh", deadline=deadline)

    def close(self) -> None:
        for envoy in self.envoys:
            envoy.close()
        for relay in self.relays:
            relay.stop()


class RelayedEnvoy(DirectEnvoy):
    """An Envoy whose control plane is a relay."""

    def __init__(self, folder: Path, bootstrap: Tree, epoch: int) -> None:
        super().__init__(folder, bootstrap)
        self.epoch = epoch
        self._relay: RunningRelay | None = None

    @property
    def pid(self) -> int:
        assert isinstance(self.process, subprocess.Popen)
        return self.process.pid

    def belongs_to(self, relay: RunningRelay) -> None:
        """Register this Envoy with the relay."""
        self._relay = relay
        relay.call(relay.relay.envoy_started, self.epoch, self.pid)

    def wait_live(self, deadline: float = 30.0) -> None:
        super().wait_live(deadline)
        if self._relay is not None:
            self._relay.call(self._relay.relay.envoy_live, self.epoch)

    def die(self) -> None:
        """Kill it, and report its end to the relay."""
        self.kill()
        if self._relay is not None:
            self._relay.call(self._relay.relay.envoy_ended, self.epoch, expected=False)

    def dump(self) -> str:
        """Return all its configuration; Envoy itself omits keys."""
        return json.dumps(json.loads(get_at(self.admin, "/config_dump?include_eds")[1]))


@contextlib.contextmanager
def stage(
    folder: Path, make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop, **options: Any
) -> Iterator[RelayStage]:
    """Open a stage; everything on it is ended when the block ends."""
    with workload("backend") as app, XdsControlPlane(**options) as plane:
        ready = RelayStage(folder, plane, app, make_loop)
        try:
            yield ready
        finally:
            ready.close()
