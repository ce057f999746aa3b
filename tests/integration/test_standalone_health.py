"""Standalone mode: serviceProbe. An application that is down costs its own inbound alone, and others go elsewhere."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import Daemon, Ports, Workload, get
from tests.support.mesh import Tree, dataplane, inbound, outbound, write
from tests.support.poll import poll
from tests.support.ports import free_port
from tests.support.standalone import answers, echo_of, logged, run_standalone, workloads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.process

PROBE: Tree = {"interval": "0.1s", "timeout": "0.1s", "unhealthyThreshold": 3, "healthyThreshold": 2, "tcp": {}}


class HealthStage:
    """``web`` on 127.0.0.2 with a checked application, a second one beside it, and a raw one."""

    def __init__(self, folder: Path, app: Workload, other: Workload) -> None:
        self.folder, self.app, self.other = folder, app, other
        self.ports = Ports.take()
        self.raw = free_port("127.0.0.2")

    def web(self, probe: Tree | None = PROBE, *outbounds: Tree) -> Tree:
        checked: Tree = {"serviceProbe": probe} if probe else {}
        sockets = [
            inbound(self.ports.inbound, self.app.port, **checked),
            inbound(self.raw, self.app.port, "raw", "tcp", **checked),
            inbound(self.ports.outbound, self.other.port, "other"),
        ]
        return dataplane("web", sockets, list(outbounds), address="127.0.0.2", admin=self.ports.admin)

    def close_app(self) -> None:
        self.app.shutdown()
        self.app.server_close()

    @contextlib.contextmanager
    def new_app(self) -> Iterator[None]:
        server = Workload("back", self.app.port)
        try:
            yield
        finally:
            server.close()

    def is_down(self) -> None:
        # Not only refused by the application: Envoy sends it nothing any more.
        answers(self.ports.inbound, (503, "no healthy upstream"), "the inbound shut", "127.0.0.2")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[HealthStage]:
    with workloads("web", "other") as (app, other):
        ready = HealthStage(tmp_path / "mesh", app, other)
        write(ready.folder, ready.web())
        yield ready


@pytest.fixture
def daemon(stage: HealthStage) -> Iterator[Daemon]:
    with run_standalone(stage.folder, stage.ports) as running:
        answers(stage.ports.inbound, (200, "web"), "the application", "127.0.0.2")
        yield running


def test_a_dead_application_is_503_at_its_inbound_and_back_again_without_a_restart(
    stage: HealthStage, daemon: Daemon
) -> None:
    envoy = daemon.envoy().pid
    stage.close_app()
    logged(daemon, f"127.0.0.1:{stage.app.port} is unhealthy")
    stage.is_down()
    assert echo_of(stage.raw) == b""
    assert get(stage.ports.outbound, host="127.0.0.2") == (200, "other")
    with stage.new_app():
        answers(stage.ports.inbound, (200, "back"), "the application again", "127.0.0.2")
        assert daemon.envoy().pid == envoy


def test_others_leave_an_unhealthy_endpoint_even_when_it_is_the_last(
    tmp_path: Path, stage: HealthStage, daemon: Daemon
) -> None:
    mine = Ports.take()
    with workloads("client", "second") as (client, second):
        write(
            stage.folder,
            dataplane(
                "client",
                [inbound(mine.inbound, client.port, "client")],
                [outbound(mine.outbound, "web")],
                address="127.0.0.3",
                admin=mine.admin,
            ),
            dataplane("second", [inbound(second.port, 0, "web")]),
        )
        with run_standalone(stage.folder, mine, "client") as other:
            both = {(200, "web"), (200, "second")}
            poll(lambda: {get(mine.outbound) for _ in range(6)} == both, what="both endpoints")
            stage.close_app()
            membership = "/stats?filter=cluster.web.membership_healthy"
            poll(lambda: get(mine.admin, membership)[1].split() == ["cluster.web.membership_healthy:", "1"], what="one")
            assert {get(mine.outbound) for _ in range(8)} == {(200, "second")}
            (stage.folder / "second.yaml").unlink()
            answers(mine.outbound, (503, "no healthy upstream"), "nobody left")
            # The answer is from our Envoy, not from the one in front of the application.
            none_left = get(mine.admin, "/stats?filter=cluster.web.upstream_cx_none_healthy")[1]
            assert int(none_left.split()[1]) > 0
            with stage.new_app():
                answers(mine.outbound, (200, "back"), "the application again")
            assert "Traceback" not in other.output()


def test_a_hung_application_delays_no_other_and_no_change(tmp_path: Path) -> None:
    with workloads("web", "other") as (app, other), socket.socket() as hung, contextlib.ExitStack() as clients:
        hung.bind(("127.0.0.1", 0))
        hung.listen(0)
        for _ in range(4):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(hung.getsockname())
        stage = HealthStage(tmp_path / "mesh", app, other)
        silent = free_port("127.0.0.2")
        tree = stage.web({**PROBE, "timeout": "30s"})
        probe = {**PROBE, "timeout": "0.2s"}
        tree["networking"]["inbound"].append(inbound(silent, hung.getsockname()[1], "hung", serviceProbe=probe))
        write(stage.folder, tree)
        with run_standalone(stage.folder, stage.ports) as daemon:
            assert get(stage.ports.inbound, host="127.0.0.2") == (200, "web")
            poll(lambda: get(silent, host="127.0.0.2", timeout=1)[0] == 503, what="503 of the hung one")
            new = free_port()
            tree["networking"]["outbound"] = [outbound(new, "nobody")]
            write(stage.folder, tree)
            poll(lambda: get(new)[0] == 503, what="a change")
            assert get(stage.ports.inbound, host="127.0.0.2") == (200, "web")
            stage.close_app()
            logged(daemon, f"127.0.0.1:{app.port} is unhealthy")
            stage.is_down()


def test_envoy_started_again_keeps_an_unhealthy_inbound_shut(stage: HealthStage, daemon: Daemon) -> None:
    stage.close_app()
    stage.is_down()
    first = daemon.kill_envoy()
    poll(lambda: daemon.envoy().pid != first.pid, what="the next Envoy")
    answers(stage.ports.outbound, (200, "other"), "the other inbound", "127.0.0.2")
    assert get(stage.ports.inbound, host="127.0.0.2") == (503, "no healthy upstream")
    with stage.new_app():
        answers(stage.ports.inbound, (200, "back"), "the application again", "127.0.0.2")


def test_an_unhealthy_inbound_follows_its_probe_being_changed_and_taken_out(stage: HealthStage, daemon: Daemon) -> None:
    stage.close_app()
    stage.is_down()
    write(stage.folder, stage.web({**PROBE, "healthyThreshold": 1}))
    with stage.new_app():
        answers(stage.ports.inbound, (200, "back"), "healthy by the changed probe", "127.0.0.2")
    stage.is_down()
    write(stage.folder, stage.web(None))
    # Without a probe it is tried again, so the answer is the failure to connect.
    poll(lambda: "connect" in get(stage.ports.inbound, host="127.0.0.2")[1], what="tried without a probe")
    with stage.new_app():
        answers(stage.ports.inbound, (200, "back"), "without a probe", "127.0.0.2")


def test_health_goes_on_while_a_file_is_broken(stage: HealthStage, daemon: Daemon) -> None:
    (stage.folder / "x.yaml").write_text("broken: [")
    logged(daemon, "change ignored", "x.yaml")
    stage.close_app()
    stage.is_down()
