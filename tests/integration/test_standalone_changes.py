"""Standalone mode: Dataplane files change while traffic flows; only the change is felt, and only a good one."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.daemon import Daemon, Ports, get
from tests.support.mesh import Tree, dataplane, inbound, outbound, write
from tests.support.poll import poll
from tests.support.ports import free_port, free_ports
from tests.support.standalone import StandaloneStage, answers, echo_of, echo_server, logged, run_standalone, workloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.process


@pytest.fixture
def daemon(stage: StandaloneStage) -> Iterator[Daemon]:
    with run_standalone(stage.folder, stage.ports) as running:
        stage.leads_to(stage.first)
        yield running


def test_connections_of_other_listeners_live_through_a_change(stage: StandaloneStage, daemon: Daemon) -> None:
    added, moved = free_ports(2)
    for port in (stage.ports.inbound, stage.ports.outbound):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/")
        assert connection.getresponse().read()
        mine = connection.sock
        write(stage.folder, stage.web(outbound(added, "new")), dataplane("new", [inbound(moved, 0, "new")]))
        poll(lambda: get(added)[0] == 503, what="the added outbound")
        write(stage.folder, stage.web(), stage.backend(stage.second))
        (stage.folder / "new.yaml").unlink()
        poll(lambda: get(added)[0] == 0, what="the outbound gone")
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.read() in {b"web", b"second"}
        assert answer.getheader("connection") != "close"
        assert connection.sock is mine
        connection.close()


def test_no_request_fails_while_an_outbound_is_pointed_elsewhere(stage: StandaloneStage, daemon: Daemon) -> None:
    statuses: set[int] = set()
    over = threading.Event()

    def send_requests() -> None:
        while not over.is_set():
            statuses.add(get(stage.ports.outbound)[0])

    # Many at once: what is looked for lasts some milliseconds.
    clients = [threading.Thread(target=send_requests) for _ in range(16)]
    for client in clients:
        client.start()
    try:
        other = dataplane("other", [inbound(stage.second.port, 0, "other")])
        for service, name in (("other", "second"), ("backend", "first"), ("other", "second")):
            tree = stage.web()
            tree["networking"]["outbound"][0]["tags"]["kuma.io/service"] = service
            write(stage.folder, tree, other)
            answers(stage.ports.outbound, (200, name), service)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert statuses == {200}


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("type: Dataplane\nmesh: [", ("other.yaml:",)),
        ("", ("other.yaml",)),
        ("type: Dataplane\nname: x\nmesh: default\nnetworking:\n  address: 10.0.0.1\n  inbound:\n  - port: 70000\n"
         "    tags: {kuma.io/service: x}\n", ("other.yaml:7", "networking.inbound[0].port")),
    ],
)  # fmt: skip
def test_a_broken_file_changes_nothing_and_is_named_with_its_line(
    stage: StandaloneStage, daemon: Daemon, text: str, texts: tuple[str, ...]
) -> None:
    (stage.folder / "other.yaml").write_text(text)
    write(stage.folder, stage.backend(stage.second))
    logged(daemon, "change ignored", *texts)
    assert get(stage.ports.outbound) == (200, "first")
    (stage.folder / "other.yaml").unlink()
    stage.leads_to(stage.second)
    assert "Traceback" not in daemon.output()


def test_a_removed_own_file_changes_nothing_and_is_logged(stage: StandaloneStage, daemon: Daemon) -> None:
    (stage.folder / "web.yaml").rename(stage.folder / "web.bak")
    logged(daemon, "change ignored", "no Dataplane 'web'", "there are: backend")
    assert get(stage.ports.outbound) == (200, "first")
    write(stage.folder, {**stage.web(), "name": "renamed"})
    logged(daemon, "change ignored", "there are: backend, renamed")
    write(stage.folder, stage.web(), stage.backend(stage.second))
    stage.leads_to(stage.second)


def test_changes_that_need_a_restart_are_logged(stage: StandaloneStage, daemon: Daemon) -> None:
    tree = stage.web()
    tree["networking"]["admin"]["port"] = free_port()
    write(stage.folder, tree)
    logged(daemon, "change ignored", "web.yaml:", "networking.admin.port", "restart")
    probes = {
        "port": free_port(),
        "endpoints": [{"inboundPort": stage.ports.inbound, "inboundPath": "/", "path": "/x"}],
    }
    write(stage.folder, stage.web(probes=probes))
    logged(daemon, "web.yaml:", "probes", "restart")


def _foreign_address(stage: StandaloneStage, held: int) -> Tree:
    return stage.web(inbounds=[inbound(stage.ports.inbound, stage.app.port), inbound(held, 1, address="192.0.2.1")])


def _held_port(stage: StandaloneStage, held: int) -> Tree:
    return stage.web(inbounds=[inbound(stage.ports.inbound, stage.app.port), inbound(held, stage.app.port)])


def _held_outbound(stage: StandaloneStage, held: int) -> Tree:
    return stage.web(outbound(held, "backend"))


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (_foreign_address, ("networking.inbound[1].port", "192.0.2.1")),
        (_held_port, ("networking.inbound[1].port", "Address already in use")),
        (_held_outbound, ("networking.outbound[1].port", "Address already in use")),
    ],
)
def test_a_rejected_change_is_reverted_and_a_later_good_one_is_applied(
    stage: StandaloneStage, daemon: Daemon, change: Callable[[StandaloneStage, int], Tree], texts: tuple[str, ...]
) -> None:
    envoy = daemon.envoy().pid
    with socket.create_server(("127.0.0.1", 0)) as holder:
        write(stage.folder, change(stage, holder.getsockname()[1]), stage.backend(stage.second))
        logged(daemon, "change rejected", "web.yaml:", *texts)
        stage.leads_to(stage.first)
        assert get(stage.ports.inbound) == (200, "web")
    write(stage.folder, stage.web())
    stage.leads_to(stage.second)
    assert daemon.envoy().pid == envoy
    assert "was rejected too" not in daemon.output()


def test_clashing_sockets_are_reported_before_envoy_gets_the_change(stage: StandaloneStage, daemon: Daemon) -> None:
    metrics = {"type": "prometheus", "conf": {"port": stage.ports.inbound}}
    write(stage.folder, stage.web(metrics=metrics), stage.backend(stage.second))
    line = logged(daemon, "change ignored", "web.yaml:", "metrics.conf.port", "is bound by")
    assert "networking.inbound[0].port" in line
    assert get(stage.ports.outbound) == (200, "first")
    assert "change rejected" not in daemon.output()


def test_two_listeners_may_swap_ports_in_one_change(stage: StandaloneStage, daemon: Daemon) -> None:
    swapped = dataplane(
        "web",
        [inbound(stage.ports.outbound, stage.app.port)],
        [outbound(stage.ports.inbound, "backend")],
        admin=stage.ports.admin,
    )
    write(stage.folder, swapped)
    answers(stage.ports.outbound, (200, "web"), "the inbound on the outbound's port")
    answers(stage.ports.inbound, (200, "first"), "the outbound on the inbound's port")
    assert "change rejected" not in daemon.output()


def test_envoy_started_again_has_the_newest_configuration(stage: StandaloneStage, daemon: Daemon) -> None:
    added, again = free_ports(2)
    write(stage.folder, stage.web(outbound(added, "backend")), stage.backend(stage.second))
    answers(added, (200, "second"), "the added outbound")
    first = daemon.kill_envoy()
    poll(lambda: daemon.envoy().pid != first.pid, what="the next Envoy")
    answers(added, (200, "second"), "the added outbound after a restart")
    stage.leads_to(stage.second)
    write(stage.folder, stage.web(outbound(again, "backend")), stage.backend(stage.first))
    answers(again, (200, "first"), "a change after the restart")


def test_a_change_made_while_envoy_is_silent_or_dead_is_not_lost(stage: StandaloneStage, daemon: Daemon) -> None:
    ports = free_ports(2)
    envoy = daemon.envoy()
    envoy.suspend()
    write(stage.folder, stage.web(outbound(ports[0], "new")), dataplane("new", [inbound(stage.second.port, 0, "new")]))
    logged(daemon, "not applied yet")
    assert get(stage.ports.readiness, "/ready")[1] in {"READY", "NOT_READY"}
    envoy.resume()
    answers(ports[0], (200, "second"), "the change, once Envoy goes on")
    assert daemon.envoy().pid == envoy.pid
    envoy.suspend()
    write(stage.folder, stage.web(outbound(ports[1], "new")))
    poll(lambda: str(ports[1]) in (_xds(daemon) / "listeners.json").read_text(), what="the listener written")
    envoy.kill()
    answers(ports[1], (200, "second"), "the change, with another Envoy")


def test_a_late_rejection_is_reverted_too(stage: StandaloneStage, daemon: Daemon) -> None:
    envoy = daemon.envoy()
    with socket.create_server(("127.0.0.1", 0)) as holder:
        envoy.suspend()
        write(stage.folder, _held_outbound(stage, holder.getsockname()[1]), stage.backend(stage.second))
        logged(daemon, "not applied yet")
        envoy.resume()
        logged(daemon, "change rejected", "networking.outbound[1].port")
        stage.leads_to(stage.first)


def _xds(daemon: Daemon) -> Path:
    arguments = psutil.Process(daemon.pid).cmdline()
    return Path(arguments[arguments.index("--work-dir") + 1]) / "xds"


def test_a_connection_to_an_endpoint_lives_while_others_come_and_go(stage: StandaloneStage, daemon: Daemon) -> None:
    port = free_port()
    with echo_server() as echo:
        write(stage.folder, stage.web(outbound(port, "raw")), dataplane("raw", [inbound(echo, 0, "raw", "tcp")]))
        poll(lambda: echo_of(port) == b"echo ping\n", what="the TCP outbound")
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(b"one\n")
            assert client.recv(100) == b"echo one\n"
            write(stage.folder, dataplane("raw2", [inbound(stage.second.port, 0, "raw", "tcp")]))
            poll(lambda: get(port) == (200, "second"), what="the endpoint that was added")
            (stage.folder / "raw2.yaml").unlink()
            write(stage.folder, stage.backend(stage.second))
            stage.leads_to(stage.second)
            client.sendall(b"two\n")
            assert client.recv(100) == b"echo two\n"


def test_a_request_in_flight_ends_well_while_its_endpoint_goes(stage: StandaloneStage, daemon: Daemon) -> None:
    answered: list[tuple[int, str]] = []
    client = threading.Thread(target=lambda: answered.append(get(stage.ports.outbound, "/slow", timeout=30)))
    client.start()
    assert stage.first.entered.wait(10)
    write(stage.folder, stage.backend(stage.second))
    stage.leads_to(stage.second)
    stage.first.release.set()
    client.join(20)
    assert answered == [(200, "first")]


def link(entry: Path) -> str:
    """Where a descriptor leads; it may be closed by now."""
    with contextlib.suppress(FileNotFoundError):
        return str(entry.readlink())
    return ""


def test_hundreds_of_outbounds_cost_envoy_no_more_watches_than_one(tmp_path: Path) -> None:
    with workloads("web", "first", "second") as servers:
        every = free_ports(208)
        many = every[8:]
        stage = StandaloneStage(tmp_path / "mesh", Ports(*every[:8]), servers)
        services = [outbound(port, f"s{index}") for index, port in enumerate(many)]
        offers = [
            dataplane(f"s{index}", [inbound(stage.first.port, 0, f"s{index}")], address=f"127.0.1.{index + 1}")
            for index in range(199)
        ]
        last = dataplane("s199", [inbound(stage.first.port, 0, "s199")])
        with run_standalone(write(stage.folder, stage.web(*services), *offers, last), stage.ports) as daemon:
            assert get(many[-1]) == (200, "first")
            folder = Path("/proc", str(daemon.envoy().pid), "fd")
            assert sum("inotify" in link(entry) for entry in folder.iterdir()) < 5
            write(stage.folder, dataplane("s199", [inbound(stage.second.port, 0, "s199")]))
            answers(many[-1], (200, "second"), "the changed one of many")


def test_what_envoy_reads_is_private(stage: StandaloneStage, daemon: Daemon) -> None:
    assert {file.name for file in _xds(daemon).iterdir()} == {"clusters.json", "listeners.json"}
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in _xds(daemon).iterdir())
