"""Standalone mode: Dataplane files change while traffic flows; only the change is felt, and only a good one."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.daemon import Daemon, Ports, Workload, get
from tests.support.mesh import Tree, dataplane, inbound, outbound, write
from tests.support.poll import poll
from tests.support.ports import free_port, free_ports
from tests.support.standalone import answers, echo_of, echo_server, logged, run_standalone, workloads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.process


class Stage:
    """A running data plane ``web`` whose outbound leads to the first of two backends."""

    def __init__(self, folder: Path, ports: Ports, servers: list[Workload]) -> None:
        self.folder, self.ports = folder, ports
        self.app, self.first, self.second = servers

    def web(self, *outbounds: Tree, inbounds: list[Tree] | None = None, **more: Any) -> Tree:
        mine = inbounds or [inbound(self.ports.inbound, self.app.port)]
        every = [outbound(self.ports.outbound, "backend"), *outbounds]
        return dataplane("web", mine, every, admin=self.ports.admin, **more)

    def backend(self, server: Workload) -> Tree:
        return dataplane("backend", [inbound(server.port, 0, "backend")])

    def write(self) -> Path:
        return write(self.folder, self.web(), self.backend(self.first))

    def leads_to(self, server: Workload) -> None:
        answers(self.ports.outbound, (200, server.name), "the outbound")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with workloads("web", "first", "second") as servers:
        made = Stage(tmp_path / "mesh", Ports.take(), servers)
        made.write()
        yield made


@pytest.fixture
def daemon(stage: Stage) -> Iterator[Daemon]:
    with run_standalone(stage.folder, stage.ports) as running:
        stage.leads_to(stage.first)
        yield running


def _rename_over(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.swp")
    beside.write_text(text)
    beside.replace(path)


def _truncate_and_write(path: Path, text: str) -> None:
    path.write_text(text)


def _move_into(path: Path, text: str) -> None:
    outside = path.parent.parent / path.name
    outside.write_text(text)
    shutil.move(outside, path)


def _delete_then_make(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def _backup_then_make(path: Path, text: str) -> None:
    backup = path.with_name(f"{path.name}~")
    path.rename(backup)
    path.write_text(text)
    backup.unlink()


def _link_to_elsewhere(path: Path, text: str) -> None:
    outside = path.parent.parent / f"linked-{path.name}"
    outside.write_text(text)
    beside = path.with_name(".link")
    beside.symlink_to(outside)
    beside.replace(path)


def _write_through_link(path: Path, text: str) -> None:
    path.resolve().write_text(text)


def _hard_link(path: Path, text: str) -> None:
    outside = path.parent.parent / f"hard-{path.name}"
    outside.write_text(text)
    path.unlink()
    os.link(outside, path)


def _new_folder(path: Path, text: str) -> None:
    folder = path.parent
    kept = {file.name: file.read_text() for file in folder.iterdir() if file != path}
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in kept.items():
        (folder / name).write_text(content)
    path.write_text(text)


WAYS: tuple[Callable[[Path, str], None], ...] = (
    _rename_over,
    _truncate_and_write,
    _move_into,
    _delete_then_make,
    _backup_then_make,
    _link_to_elsewhere,
    _write_through_link,
    _new_folder,
    _hard_link,
    _truncate_and_write,
)


def test_every_way_of_writing_a_file_is_seen_without_a_restart(stage: Stage, daemon: Daemon) -> None:
    envoy, path = daemon.envoy().pid, stage.folder / "backend.yaml"
    for index, way in enumerate(WAYS):
        server = (stage.second, stage.first)[index % 2]
        way(path, json.dumps(stage.backend(server)))
        poll(lambda: get(stage.ports.outbound) == (200, server.name), what=f"{way.__name__} ({index})")  # noqa: B023
    assert daemon.envoy().pid == envoy
    shutil.rmtree(stage.folder)
    logged(daemon, "nothing is changed", str(stage.folder))
    stage.write()
    (stage.folder / "backend.yaml").write_text(json.dumps(stage.backend(stage.second)))
    stage.leads_to(stage.second)


def test_a_folder_of_links_is_swapped_as_kubernetes_does(tmp_path: Path) -> None:
    ports = Ports.take()
    with workloads("web", "first", "second") as servers:
        stage = Stage(tmp_path / "mesh", ports, servers)
        stage.folder.mkdir()
        for version, server in (("..1", stage.first), ("..2", stage.second)):
            write(stage.folder / version, stage.web(), stage.backend(server))
        (stage.folder / "..data").symlink_to("..1")
        for name in ("web.yaml", "backend.yaml"):
            (stage.folder / name).symlink_to(f"..data/{name}")
        with run_standalone(stage.folder, ports):
            stage.leads_to(stage.first)
            (stage.folder / "..data_tmp").symlink_to("..2")
            (stage.folder / "..data_tmp").replace(stage.folder / "..data")
            shutil.rmtree(stage.folder / "..1")
            stage.leads_to(stage.second)


def test_a_single_file_is_followed(tmp_path: Path) -> None:
    with workloads("web", "first", "second") as servers:
        stage = Stage(tmp_path / "mesh", Ports.take(), servers)
        stage.write()
        other = free_port()
        with run_standalone(stage.folder / "web.yaml", stage.ports):
            assert get(stage.ports.outbound)[0] == 503
            write(stage.folder, stage.web(inbounds=[inbound(other, stage.app.port)]))
            answers(other, (200, "web"), "the new inbound")
            assert get(stage.ports.inbound)[0] == 0


def test_connections_of_other_listeners_live_through_a_change(stage: Stage, daemon: Daemon) -> None:
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


def test_no_request_fails_while_an_outbound_is_pointed_elsewhere(stage: Stage, daemon: Daemon) -> None:
    other = dataplane("other", [inbound(stage.second.port, 0, "other")])
    for service in ("other", "backend", "other"):
        tree = stage.web()
        tree["networking"]["outbound"][0]["tags"]["kuma.io/service"] = service
        write(stage.folder, tree, other)
        expected = (200, {"other": "second", "backend": "first"}[service])
        statuses: set[int] = set()

        def arrived(expected: tuple[int, str] = expected, statuses: set[int] = statuses) -> bool:
            answer = get(stage.ports.outbound)
            statuses.add(answer[0])
            return answer == expected

        poll(arrived, what=str(expected))
        assert statuses == {200}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("type: Dataplane\nmesh: [", ("other.yaml:",)),
        ("", ("other.yaml",)),
        ("type: Dataplane\nname: x\nmesh: default\nnetworking:\n  address: 10.0.0.1\n  inbound:\n  - port: 70000\n"
         "    tags: {kuma.io/service: x}\n", ("other.yaml:7", "networking.inbound[0].port")),
    ],
)  # fmt: skip
def test_a_broken_file_changes_nothing_and_says_where(
    stage: Stage, daemon: Daemon, text: str, told: tuple[str, ...]
) -> None:
    (stage.folder / "other.yaml").write_text(text)
    write(stage.folder, stage.backend(stage.second))
    logged(daemon, "nothing is changed", *told)
    assert get(stage.ports.outbound) == (200, "first")
    (stage.folder / "other.yaml").unlink()
    stage.leads_to(stage.second)
    assert "Traceback" not in daemon.output()


def test_our_own_file_gone_changes_nothing_and_is_said(stage: Stage, daemon: Daemon) -> None:
    (stage.folder / "web.yaml").rename(stage.folder / "web.bak")
    logged(daemon, "nothing is changed", "no Dataplane 'web'", "there are: backend")
    assert get(stage.ports.outbound) == (200, "first")
    write(stage.folder, {**stage.web(), "name": "renamed"})
    logged(daemon, "nothing is changed", "there are: backend, renamed")
    write(stage.folder, stage.web(), stage.backend(stage.second))
    stage.leads_to(stage.second)


def test_what_changes_with_a_restart_only_is_said(stage: Stage, daemon: Daemon) -> None:
    tree = stage.web()
    tree["networking"]["admin"]["port"] = free_port()
    write(stage.folder, tree)
    logged(daemon, "nothing is changed", "web.yaml:", "networking.admin.port", "restart")
    probes = {
        "port": free_port(),
        "endpoints": [{"inboundPort": stage.ports.inbound, "inboundPath": "/", "path": "/x"}],
    }
    write(stage.folder, stage.web(probes=probes))
    logged(daemon, "web.yaml:", "probes", "restart")


def _foreign_address(stage: Stage, held: int) -> Tree:
    return stage.web(inbounds=[inbound(stage.ports.inbound, stage.app.port), inbound(held, 1, address="192.0.2.1")])


def _held_port(stage: Stage, held: int) -> Tree:
    return stage.web(inbounds=[inbound(stage.ports.inbound, stage.app.port), inbound(held, stage.app.port)])


def _held_outbound(stage: Stage, held: int) -> Tree:
    return stage.web(outbound(held, "backend"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_foreign_address, ("networking.inbound[1].port", "192.0.2.1")),
        (_held_port, ("networking.inbound[1].port", "Address already in use")),
        (_held_outbound, ("networking.outbound[1].port", "Address already in use")),
    ],
)
def test_a_refused_change_is_undone_and_named_and_a_later_good_one_works(
    stage: Stage, daemon: Daemon, change: Callable[[Stage, int], Tree], told: tuple[str, ...]
) -> None:
    envoy = daemon.envoy().pid
    with socket.create_server(("127.0.0.1", 0)) as holder:
        write(stage.folder, change(stage, holder.getsockname()[1]), stage.backend(stage.second))
        logged(daemon, "the change is undone", "web.yaml:", *told)
        stage.leads_to(stage.first)
        assert get(stage.ports.inbound) == (200, "web")
    write(stage.folder, stage.web())
    stage.leads_to(stage.second)
    assert daemon.envoy().pid == envoy
    assert "going back did not work" not in daemon.output()


def test_sockets_of_ours_that_clash_are_named_before_envoy_is_asked(stage: Stage, daemon: Daemon) -> None:
    metrics = {"type": "prometheus", "conf": {"port": stage.ports.inbound}}
    write(stage.folder, stage.web(metrics=metrics), stage.backend(stage.second))
    line = logged(daemon, "nothing is changed", "web.yaml:", "metrics.conf.port", "is bound by")
    assert "networking.inbound[0].port" in line
    assert get(stage.ports.outbound) == (200, "first")
    assert "undone" not in daemon.output()


def test_ports_may_change_hands_in_one_change(stage: Stage, daemon: Daemon) -> None:
    swapped = dataplane(
        "web",
        [inbound(stage.ports.outbound, stage.app.port)],
        [outbound(stage.ports.inbound, "backend")],
        admin=stage.ports.admin,
    )
    write(stage.folder, swapped)
    answers(stage.ports.outbound, (200, "web"), "the inbound on the outbound's port")
    answers(stage.ports.inbound, (200, "first"), "the outbound on the inbound's port")
    assert "undone" not in daemon.output()


def test_envoy_started_again_has_the_newest_configuration(stage: Stage, daemon: Daemon) -> None:
    added, again = free_ports(2)
    write(stage.folder, stage.web(outbound(added, "backend")), stage.backend(stage.second))
    answers(added, (200, "second"), "the added outbound")
    first = daemon.kill_envoy()
    poll(lambda: daemon.envoy().pid != first.pid, what="another Envoy")
    answers(added, (200, "second"), "the added outbound after a restart")
    stage.leads_to(stage.second)
    write(stage.folder, stage.web(outbound(again, "backend")), stage.backend(stage.first))
    answers(again, (200, "first"), "a change after the restart")


def test_a_change_made_while_envoy_is_silent_or_dead_is_not_lost(stage: Stage, daemon: Daemon) -> None:
    ports = free_ports(2)
    envoy = daemon.envoy()
    envoy.suspend()
    write(stage.folder, stage.web(outbound(ports[0], "new")), dataplane("new", [inbound(stage.second.port, 0, "new")]))
    logged(daemon, "watched until it is in force")
    assert get(stage.ports.readiness, "/ready")[1] in {"READY", "NOT_READY"}
    envoy.resume()
    answers(ports[0], (200, "second"), "the change, once Envoy goes on")
    assert daemon.envoy().pid == envoy.pid
    envoy.suspend()
    write(stage.folder, stage.web(outbound(ports[1], "new")))
    poll(lambda: str(ports[1]) in (_xds(daemon) / "listeners.json").read_text(), what="the listener written")
    envoy.kill()
    answers(ports[1], (200, "second"), "the change, with another Envoy")


def _xds(daemon: Daemon) -> Path:
    arguments = psutil.Process(daemon.pid).cmdline()
    return Path(arguments[arguments.index("--work-dir") + 1]) / "xds"


def test_a_connection_to_an_endpoint_lives_while_others_come_and_go(stage: Stage, daemon: Daemon) -> None:
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


def test_a_request_in_flight_ends_well_while_its_endpoint_goes(stage: Stage, daemon: Daemon) -> None:
    answered: list[tuple[int, str]] = []
    client = threading.Thread(target=lambda: answered.append(get(stage.ports.outbound, "/slow", timeout=30)))
    client.start()
    assert stage.first.entered.wait(10)
    write(stage.folder, stage.backend(stage.second))
    stage.leads_to(stage.second)
    stage.first.release.set()
    client.join(20)
    assert answered == [(200, "first")]


def test_hundreds_of_outbounds_cost_envoy_no_more_watches_than_one(tmp_path: Path) -> None:
    with workloads("web", "first", "second") as servers:
        every = free_ports(208)
        many = every[8:]
        stage = Stage(tmp_path / "mesh", Ports(*every[:8]), servers)
        services = [outbound(port, f"s{index}") for index, port in enumerate(many)]
        offers = [
            dataplane(f"s{index}", [inbound(stage.first.port, 0, f"s{index}")], address=f"127.0.1.{index + 1}")
            for index in range(199)
        ]
        last = dataplane("s199", [inbound(stage.first.port, 0, "s199")])
        with run_standalone(write(stage.folder, stage.web(*services), *offers, last), stage.ports) as daemon:
            assert get(many[-1]) == (200, "first")
            folder = Path("/proc", str(daemon.envoy().pid), "fd")
            assert sum("inotify" in str(entry.readlink()) for entry in folder.iterdir()) < 5
            write(stage.folder, dataplane("s199", [inbound(stage.second.port, 0, "s199")]))
            answers(many[-1], (200, "second"), "the changed one of many")


def test_what_envoy_reads_is_private(stage: Stage, daemon: Daemon) -> None:
    assert {file.name for file in _xds(daemon).iterdir()} == {"clusters.json", "listeners.json"}
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in _xds(daemon).iterdir())
