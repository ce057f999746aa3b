"""Port 0: several data planes with the same flags on one host, each with its own ports, which it reports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.command import kumadp
from tests.support.daemon import Daemon, Ports, get, run_kumadp, workload
from tests.support.kuma_resources import dataplane
from tests.support.needs import need_coredns
from tests.support.poll import poll
from tests.support.standalone import logged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.xds.plane import XdsControlPlane

pytestmark = pytest.mark.process

ANY = {
    "KUMA_READINESS_PORT": "0",
    "KUMA_DNS_CORE_DNS_PORT": "0",
    "KUMA_DNS_ENVOY_DNS_PORT": "0",
    "KUMA_DNS_PROMETHEUS_PORT": "0",
}
# How many at once.
SEVERAL = 4


class Instance:
    """One of several data planes, with its own folder."""

    def __init__(self, folder: Path, plane: XdsControlPlane, number: int, application: int) -> None:
        self.folder, self.plane = folder, plane
        folder.mkdir()
        self.ports = Ports.take()
        self.name = f"web-{number}"
        self.tree = dataplane(self.name, "web", self.ports, application, probes=False)
        del self.tree["networking"]["admin"]
        (folder / "dp.json").write_text(json.dumps(self.tree))
        (folder / "token").write_text(plane.token("default", self.name))
        plane.write_ca(folder / "ca.crt")

    @contextlib.contextmanager
    def run(self, *more: str, dns: bool = False) -> Iterator[Daemon]:
        with run_kumadp(
            self.folder,
            self.ports,
            f"--cp-address={self.plane.url}",
            f"--ca-cert-file={self.folder / 'ca.crt'}",
            f"--dataplane-file={self.folder / 'dp.json'}",
            f"--dataplane-token-file={self.folder / 'token'}",
            "--admin-port=0",
            "--drain-time=1s",
            *more,
            environment=ANY,
            dns=dns,
        ) as daemon:
            yield daemon

    def addresses(self) -> dict[str, str]:
        state: dict[str, Any] = json.loads((self.folder / "work" / "state.json").read_text())
        return dict(state["parts"]["addresses"])

    def wait_ready(self) -> dict[str, str]:
        """Wait for READY at the address in the state file; return all addresses."""

        def ready() -> dict[str, str]:
            try:
                addresses = self.addresses()
            except (OSError, KeyError):
                return {}
            port = int(addresses["readiness"].split(":")[2].split("/")[0])
            return addresses if get(port, "/ready", timeout=1) == (200, "READY") else {}

        return poll(ready, what=f"READY of {self.name}", deadline=60)


@pytest.fixture
def folder() -> Iterator[Path]:
    # pytest's own folders have names too long for Unix sockets.
    path = Path(tempfile.mkdtemp(prefix="kp"))
    yield path
    shutil.rmtree(path)


@pytest.mark.timeout(180)
def test_several_with_the_same_flags_each_have_ports_of_their_own(folder: Path, plane: XdsControlPlane) -> None:
    need_coredns()
    with workload("web") as application, contextlib.ExitStack() as stack:
        instances = [Instance(folder / str(number), plane, number, application.port) for number in range(SEVERAL)]
        for instance in instances:
            stack.enter_context(instance.run(dns=True))
        reports = [instance.wait_ready() for instance in instances]
        expected = {"readiness", "admin", "dns", "coredns metrics"}
        assert all(expected <= addresses.keys() for addresses in reports)
        every = [address for addresses in reports for key, address in addresses.items() if key in expected]
        assert len(set(every)) == len(every)
        for addresses, instance in zip(reports, instances, strict=True):
            assert get(int(addresses["admin"].rpartition(":")[2]), "/server_info")[0] == 200
            assert get(int(addresses["coredns metrics"].rpartition(":")[2]), "/metrics")[0] == 200
            assert get(instance.ports.inbound) == (200, "web")
        # Each was sent to the control plane before the bootstrap.
        for request in plane.bootstrap_requests:
            addresses = reports[int(request["name"].removeprefix("web-"))]
            resource = json.loads(request["dataplaneResource"])
            assert f":{request['readinessPort']}/" in addresses["readiness"]
            assert addresses["admin"].endswith(f":{resource['networking']['admin']['port']}")
            assert request["dnsPort"] > 0


def test_ports_survive_a_reload_a_reexecution_and_a_kill(folder: Path, plane: XdsControlPlane) -> None:
    with workload("web") as application:
        instance = Instance(folder / "0", plane, 0, application.port)
        with instance.run("--on-parent-death=keep") as daemon:
            before = instance.wait_ready()
            for number, done in ((signal.SIGHUP, "epoch 1 serves"), (signal.SIGUSR1, "takes over")):
                os.kill(daemon.pid, number)
                logged(daemon, done)
                assert instance.wait_ready() == before
            daemon.process.kill()
            daemon.wait()
            with instance.run("--on-parent-death=keep") as following:
                assert instance.wait_ready() == before
                following.terminate()
                assert following.wait() == 0
        assert not (instance.folder / "work" / "state.json").exists()


def test_in_standalone_mode_the_file_names_the_admin_port(tmp_path: Path) -> None:
    (tmp_path / "dp.yaml").write_text(
        "type: Dataplane\nmesh: default\nname: web\nnetworking:\n  address: 127.0.0.1\n"
        "  inbound: [{port: 18080, servicePort: 8080, tags: {kuma.io/service: web}}]\n"
    )
    done = kumadp("run", f"--standalone={tmp_path / 'dp.yaml'}", "--admin-port=0", f"--work-dir={tmp_path / 'w'}")
    assert done.returncode == 78
    assert "--admin-port: the data planes of a folder find each other's readiness" in done.stderr
