"""The Envoy component with hot restart, its bootstraps made on the spot; every answer names the Envoy that gave it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kumadp.bootstrap.admin_address import TcpAdmin, UnixAdmin
from kumadp.envoy.argv import envoy_argv
from kumadp.envoy.base_id import SharedMemory
from kumadp.envoy.component import EnvoyComponent
from kumadp.envoy.options import EnvoyCallbacks, EnvoyOptions, EpochCallbacks, HotRestart
from kumadp.envoy.reload import Plan
from kumadp.host.private_file import write_private
from kumadp.process.child import Command
from kumadp.process.restart_policy import ChildState, RestartPolicy
from tests.support.many_clusters import split_names
from tests.support.needs import need_envoy
from tests.support.poll import poll_async
from tests.support.ports import free_ports
from tests.support.scripted_control_plane import socket_address, static_cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kumadp.envoy.adopted_envoy import AdoptedEnvoy
    from kumadp.envoy.hang_watch import HangWatch
    from kumadp.process.child import Child
    from kumadp.process.exit_status import ExitStatus
    from kumadp.process.supervisor import ChildReport

_HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def answering_listener(port: int, text: str) -> dict[str, Any]:
    """An HTTP listener that answers ``text`` itself."""
    route = {"match": {"prefix": "/"}, "directResponse": {"status": 200, "body": {"inlineString": text}}}
    manager = {
        "@type": _HTTP,
        "statPrefix": "in",
        "routeConfig": {"virtualHosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "httpFilters": [{"name": "router", "typedConfig": {"@type": _ROUTER}}],
    }
    return {
        "name": f"in-{port}",
        "address": socket_address(port),
        "filterChains": [{"filters": [{"name": "http", "typedConfig": manager}]}],
    }


@dataclass
class Epochs:
    """One component in ``folder``; ``unix`` puts the admin on a Unix socket."""

    folder: Path
    unix: bool = False
    concurrency: int = 1
    drain_time: float = 1.0
    deadline: float = 15.0
    budget: int = 3
    watch: HangWatch | None = None
    hot: bool = True
    memory: SharedMemory = field(default_factory=SharedMemory)
    adopt: AdoptedEnvoy | None = None
    states: list[ChildState] = field(default_factory=list)
    reports: list[ChildReport] = field(default_factory=list)
    events: list[tuple[object, ...]] = field(default_factory=list)
    deaths: list[ExitStatus] = field(default_factory=list)
    leaving: bool = False

    def __post_init__(self) -> None:
        self.port, self.other, admin = free_ports(3)
        self.admin = UnixAdmin(str(self.folder / "admin.sock")) if self.unix else TcpAdmin("127.0.0.1", admin)
        self._count = 0

    def plan(self, text: str, **how: Any) -> Plan:
        """A way to run Envoy, whose answers are ``text``; see `bootstrap` and `command`."""
        command = {name: how.pop(name) for name in ("concurrency", "binary") if name in how}
        self._count += 1
        path = self.folder / f"bootstrap-{self._count}.yaml"
        write_private(path, json.dumps(self.bootstrap(text, **how)).encode())
        argv = envoy_argv(
            command.get("binary", need_envoy()),
            path,
            drain_time=self.drain_time,
            log_level="info",
            component_log_level="",
            concurrency=command.get("concurrency", self.concurrency),
        )

        async def make() -> Command:
            return Command(argv, "envoy", {"PATH": os.defpath}, on_death=self.note)

        return Plan(make, self.admin, bool(how.get("stuck")))

    def bootstrap(
        self, text: str, *, stuck: bool = False, bad: bool = False, more: bool = False, slow: int = 0
    ) -> dict[str, Any]:
        """``stuck``: waits for a control plane that is not there. ``bad``: refused. ``more``: a second listener.

        ``slow``: so many clusters, each of which takes Envoy some 20 ms, with one of Kuma's regexes for tags of stats.
        """
        ads = static_cluster("ads", {"pipe": {"path": str(self.folder / "nobody.sock")}})
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        http2 = {"@type": f"type.googleapis.com/{options}", "explicitHttpConfig": {"http2ProtocolOptions": {}}}
        ads["typedExtensionProtocolOptions"] = {options: http2}
        listeners = [answering_listener(port, text) for port in ((self.port, self.other) if more else (self.port,))]
        unix = {"pipe": {"path": self.admin.path, "mode": 0o600}} if isinstance(self.admin, UnixAdmin) else None
        tree: dict[str, Any] = {
            "node": {"id": "default.web-1", "cluster": "web"},
            "admin": {"address": unix or socket_address(self.admin.port if isinstance(self.admin, TcpAdmin) else 0)},
            "staticResources": {"listeners": listeners, "clusters": [ads]},
        }
        if stuck:
            service = {"envoyGrpc": {"clusterName": "ads"}}
            ads_source = {"ads": {}, "resourceApiVersion": "V3", "initialFetchTimeout": "0s"}
            tree["dynamicResources"] = {
                "adsConfig": {"apiType": "GRPC", "transportApiVersion": "V3", "grpcServices": [service]},
                "cdsConfig": ads_source,
                "ldsConfig": ads_source,
            }
        if slow:
            clusters = tree["staticResources"]["clusters"]
            clusters += [static_cluster(name, socket_address(9)) for name in split_names(slow)]
            tree["statsConfig"] = {"statsTags": [{"tagName": "listener", "regex": r"((.+?)\.)rbac\."}]}
        if bad:
            ads["type"] = "EDS"
        return tree

    def start(self, plan: Plan) -> None:
        """Begin with ``plan``."""
        epochs = EpochCallbacks(
            on_started=lambda epoch, pid: self.events.append(("started", epoch, pid)),
            on_live=lambda epoch: self.events.append(("live", epoch)),
            on_ended=lambda epoch, pid, expected: self.events.append(("ended", epoch, pid, expected)),
            on_handover=lambda active: self.events.append(("handover", active)),
        )
        hot = HotRestart(self.folder, self.drain_time, self.deadline, margin=1.0, shared_memory=self.memory)
        options = EnvoyOptions(
            RestartPolicy(self.budget, base=0.01),
            stop_grace=5.0,
            hot_restart=hot if self.hot else None,
            hang_watch=self.watch,
            adopted=self.adopt,
        )
        callbacks = EnvoyCallbacks(self._changed, lambda _reason: None, is_stopping=lambda: self.leaving, epochs=epochs)
        self.component = EnvoyComponent(plan, options, callbacks)
        self.task = asyncio.create_task(self.component.run(lambda: None))

    def generation_of(self, pid: int) -> int | None:
        """The generation of a running Envoy, by what was reported; None if it has ended."""
        running = {}
        for what, number, *rest in (event for event in self.events if event[0] in {"started", "ended"}):
            if what == "started":
                running[rest[0]] = number
            else:
                running.pop(rest[0], None)
        number = running.get(pid)
        assert number is None or isinstance(number, int)
        return number

    def note(self, _child: Child, status: ExitStatus) -> None:
        """A death that nobody had planned."""
        self.deaths.append(status)

    def _changed(self, report: ChildReport) -> None:
        self.reports.append(report)
        self.states.append(report.state)

    async def is_up(self, times: int = 1) -> None:
        """Wait until Envoy has come up ``times`` times."""

        async def seen() -> bool:
            if self.task.done():
                self.task.result()
            ups = [
                state
                for state, before in zip(self.states, [ChildState.STOPPED, *self.states], strict=False)
                if state is ChildState.RUNNING and before is ChildState.STARTING
            ]
            return len(ups) >= times

        await poll_async(seen, what=f"Envoy up {times} times: {self.states}")

    @property
    def pids(self) -> list[int]:
        """Pids of every Envoy that runs: the current one first."""
        return [child.pid for child in self.component.children]

    def signal(self, number: int = signal.SIGKILL, which: int = 0) -> int:
        """Signal one of the Envoys that run, the current one by default; returns its pid."""
        child = self.component.children[which]
        child.send_signal(number)
        return child.pid

    async def alone(self) -> None:
        """Wait until the current epoch is the only one."""

        async def seen() -> bool:
            return len(self.pids) == 1 and not self.component.is_handing_over

        await poll_async(seen, what="the old epoch's end")

    async def answer(self) -> str:
        """Who answers on the listener: its text, or the name of the error."""
        try:
            async with asyncio.timeout(5.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                whole = await reader.read()
                writer.close()
        except (OSError, TimeoutError) as error:
            return type(error).__name__
        return whole.rpartition(b"\r\n\r\n")[2].decode()

    def shared_memory(self) -> list[Path]:
        """Shared memory of the base ids that are noted in the folder."""
        numbers = [int(path.read_text()) * 10 for path in self.folder.glob("h*.base")]
        return [path for number in numbers if (path := Path(f"/dev/shm/envoy_shared_memory_{number}")).exists()]


@contextlib.asynccontextmanager
async def running(folder: Path, *, start: dict[str, Any] | None = None, **how: Any) -> AsyncIterator[Epochs]:
    """An Envoy that is up and answers ``first``; ``start`` is given to its plan."""
    envoys = Epochs(folder, **how)
    envoys.start(envoys.plan("first", **(start or {})))
    try:
        await envoys.is_up()
        yield envoys
    finally:
        envoys.task.cancel()
        await asyncio.gather(envoys.task, return_exceptions=True)
