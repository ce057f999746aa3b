"""A data plane behind a control plane of either kind, run as a user runs it: `kumadp run` with its relay."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Protocol

from kumadp.daemon.control_client import query_status
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.control_planes import open_plane, suited
from tests.support.daemon import Daemon, Ports, get, run_kumadp, workload
from tests.support.kuma_resources import dataplane
from tests.support.poll import poll

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import psutil

    from tests.support.control_planes import ControlPlane

NAME = "backend-01"
NODE = f"default.{NAME}"
# Seconds. A real control plane needs several for what the tests' own does at once.
SOON = 40.0


class Application(Protocol):
    """Answers every request with its name."""

    name: str
    port: int


class Rig:
    """A control plane, an application, and a data plane whose outbound leads through the mesh to its own inbound."""

    def __init__(self, folder: Path, plane: ControlPlane, app: Application) -> None:
        self.folder, self.plane, self.app = folder, plane, app
        self.ports = Ports.take()
        self.daemon: Daemon | None = None
        """The last one that was run."""
        self.token, self.ca, self.file = folder / "dp.token", folder / "ca.crt", folder / "dp.json"
        self.settings: dict[str, Any] | None = None
        """Settings in a file, which a reload reads again, in the place of the flags that lead to the control plane."""
        self.state, self.work = folder / "state", folder / "work"
        self.dataplane = dataplane(NAME, "backend", self.ports, app.port, probes=False)
        self.renew_token()
        plane.write_ca(self.ca)

    def renew_token(self) -> None:
        """Write the token that the control plane takes now into the file."""
        self.token.write_text(self.plane.token("default", NAME))
        self.token.chmod(0o600)

    @contextlib.contextmanager
    def run(
        self,
        *more: str,
        environment: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        dns: bool = False,
    ) -> Iterator[Daemon]:
        """A running data plane; ``more`` are flags of `kumadp run`. Without a token file it gets no flag for one."""
        self.write_dataplane()
        ways = self.write_settings() or self._flags()
        with run_kumadp(
            self.folder,
            self.ports,
            *(*ways, f"--dataplane-file={self.file}", "--drain-time=1s", *more),
            environment={"KUMA_CONTROL_PLANE_RETRY_BACKOFF": "200ms", **(environment or {})},
            prefix=prefix,
            dns=dns,
        ) as daemon:
            self.daemon = daemon
            yield daemon
            assert "Traceback" not in daemon.output(), daemon.output()

    def write_dataplane(self) -> None:
        """Write the Dataplane as it is now, in the form that the control plane takes."""
        self.file.write_text(json.dumps(suited(self.plane, self.dataplane)))

    def _flags(self) -> tuple[str, ...]:
        token = (f"--dataplane-token-file={self.token}",) if self.token.exists() else ()
        return (f"--cp-address={self.plane.url}", f"--ca-cert-file={self.ca}", *token)

    def write_settings(self) -> tuple[str, ...]:
        """Write the settings as they are now, where there are any; the flag for their file."""
        if self.settings is None:
            return ()
        path = self.folder / "kumadp.yaml"
        path.write_text(json.dumps(self.settings))
        return (f"--config={path}",)

    def serves(self) -> bool:
        return get(self.ports.outbound) == (200, self.app.name)

    def wait_traffic(self, what: str = "traffic through the mesh") -> None:
        poll(self.serves, what=what, deadline=SOON)

    def wait_ready(self, daemon: Daemon) -> None:
        """Wait for READY, traffic, and until everything that Envoy accepted is acknowledged to the control plane."""
        daemon.wait_ready(SOON)
        self.wait_traffic()
        poll(lambda: self.settled(daemon), what="everything acknowledged", deadline=SOON)

    def settled(self, daemon: Daemon) -> bool:
        """Return whether every response was accepted and acknowledged."""
        # The first client of the control socket waits for an import, on a busy host for seconds.
        with contextlib.suppress(TimeoutError):
            types = self.types(daemon).values()
            return len(types) >= 3 and all(
                view["accepted"] and view["accepted"] == view["latest"] and not view["open"] for view in types
            )
        return False

    def status(self, daemon: Daemon) -> dict[str, Any]:
        """Return the status, from the control socket."""
        return query_status(control_socket_path(NAME, daemon.environment))

    def count(self, daemon: Daemon) -> int:
        """Return how often it was re-executed; -1 while it does not answer."""
        with contextlib.suppress(OSError):
            return int(self.status(daemon).get("reexec", {}).get("count", 0))
        return -1

    def relay(self, daemon: Daemon) -> dict[str, Any]:
        """Return the relay section of the status, once there is one: a kumadp that starts answers before its relay."""
        section: dict[str, Any] = poll(lambda: self.status(daemon).get("relay"), what="the relay in the status")
        return section

    def types(self, daemon: Daemon) -> dict[str, dict[str, Any]]:
        """Return the relay's section for each requested type."""
        return {view["type"]: view for view in self.relay(daemon)["types"]}

    def wait_state(self, daemon: Daemon, state: str) -> dict[str, Any]:
        """Return the relay's section once the stream to the control plane is in this state."""
        return poll(
            lambda: section if (section := self.relay(daemon))["state"] == state else None,
            what=f"the stream {state}",
            deadline=SOON,
        )

    def wait_warning(self, daemon: Daemon, part: str) -> str:
        """Wait until a warning of the status contains ``part``; return it."""

        return poll(lambda: self._text_of(daemon, "concerns", part), what=f"a warning: {part}", deadline=SOON)

    def waits_for(self, daemon: Daemon, reason: str) -> bool:
        """Return whether this is among the reasons why it is not ready."""
        return bool(self._text_of(daemon, "reasons", reason))

    def restarts(self, daemon: Daemon) -> int:
        """Return how often Envoy was restarted."""
        return int(self.status(daemon)["children"]["envoy"]["restarts"])

    def _text_of(self, daemon: Daemon, where: str, part: str) -> str:
        # There is no control socket at first.
        with contextlib.suppress(OSError):
            return next((text for text in self.status(daemon)[where] if part in text), "")
        return ""

    def kill_envoy(self, daemon: Daemon) -> psutil.Process:
        """Kill Envoy; return the next one once it serves."""
        killed = daemon.kill_envoy()
        again = poll(
            lambda: envoy if (envoy := daemon.children().get("envoy")) and envoy.pid != killed.pid else None,
            what="the next Envoy",
        )
        daemon.wait_ready()
        self.wait_traffic("traffic through the next Envoy")
        return again

    @property
    def last(self) -> Daemon:
        """The data plane that was run last."""
        assert self.daemon is not None, "nothing runs"
        return self.daemon

    def stats(self, pattern: str) -> dict[str, int]:
        """Return counters and gauges of Envoy whose names match."""
        status, text = self.last.get_admin(f"/stats?format=json&filter={pattern}")
        entries = json.loads(text)["stats"] if status == 200 else []
        return {entry["name"]: entry["value"] for entry in entries if "name" in entry}


@contextlib.contextmanager
def open_rig(folder: Path, plane: str | ControlPlane, app: Application | None = None) -> Iterator[Rig]:
    """Open a rig with this control plane, or with one of a kind of `control_planes.KINDS`; ``app`` may be given."""
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_plane(plane, folder)) if isinstance(plane, str) else plane
        yield Rig(folder, opened, app or stack.enter_context(workload("backend")))
