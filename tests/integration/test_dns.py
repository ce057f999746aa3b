"""Names of the mesh in a real run: by the real CoreDNS in front of Envoy, by Envoy alone, and when CoreDNS is lost."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from kumadp.daemon.control_client import query_status
from kumadp.errors import ExitCode
from kumadp.host.net.socket_paths import control_socket_path
from tests.support.command import kumadp
from tests.support.daemon import Daemon, Ports, get, run_kumadp, workload, write_mesh
from tests.support.dns_load import dns_load
from tests.support.needs import need_coredns, need_other_coredns
from tests.support.poll import poll
from tests.support.scripted_control_plane import ScriptedControlPlane, bootstrap_answer, static_bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.process


@contextlib.contextmanager
def running(
    tmp_path: Path, ports: Ports, *more: str, coredns: str, environment: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    with workload("web") as app, workload("backend") as backend:
        mesh = write_mesh(tmp_path / "mesh", ports, app.port, backend.port)
        arguments = ("--standalone", str(mesh), "--name", "web", "--drain-time", "1s", "--dns-coredns-path", coredns)
        with run_kumadp(tmp_path, ports, *arguments, *more, environment=environment, dns=True) as daemon:
            yield daemon


def query(port: int, name: str, kind: str = "A", *, tcp: bool = False) -> tuple[str, list[str]]:
    """Code and data of an answer; ("", []) where none comes."""
    send = dns.query.tcp if tcp else dns.query.udp
    try:
        answer = send(dns.message.make_query(name, kind), "127.0.0.1", port=port, timeout=3)
    except (OSError, EOFError, dns.exception.DNSException):
        return "", []
    return dns.rcode.to_text(answer.rcode()), [str(item) for record_set in answer.answer for item in record_set]


def test_coredns_answers_what_envoy_knows(tmp_path: Path, ports: Ports) -> None:
    with running(tmp_path, ports, coredns=str(need_coredns())) as daemon:
        daemon.wait_ready()
        for tcp in (False, True):
            assert query(ports.dns, "backend.mesh", tcp=tcp) == ("NOERROR", ["127.0.0.1"])
            assert query(ports.dns, "nobody.mesh", tcp=tcp) == ("NXDOMAIN", [])
        first = daemon.children()["coredns"]
        first.kill()
        poll(lambda: daemon.children().get("coredns", first).pid != first.pid, what="the second CoreDNS")
        poll(lambda: query(ports.dns, "backend.mesh") == ("NOERROR", ["127.0.0.1"]), what="names again")
        assert get(ports.outbound) == (200, "backend")
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def test_the_embedded_resolver_answers_where_there_is_no_coredns(tmp_path: Path, ports: Ports) -> None:
    with running(tmp_path, ports, coredns="coredns", environment={"PATH": str(tmp_path)}) as daemon:
        daemon.wait_ready()
        for tcp in (False, True):
            assert query(ports.dns, "BackEnd.mesh", tcp=tcp) == ("NOERROR", ["127.0.0.1"])
            assert query(ports.dns, "backend.mesh", "AAAA", tcp=tcp) == ("NOERROR", [])
            assert query(ports.dns, "nobody.mesh", tcp=tcp) == ("NXDOMAIN", [])
        status = query_status(control_socket_path("web", daemon.environment))
        assert status["dns"]["answered_by"] == "the embedded resolver"
        assert status["ports"]["dns"] == f"0.0.0.0:{ports.dns}"
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


def test_the_embedded_resolver_can_be_chosen(tmp_path: Path, ports: Ports) -> None:
    with running(tmp_path, ports, "--dns-mode=embedded", coredns=str(need_coredns())) as daemon:
        daemon.wait_ready()
        assert query(ports.dns, "backend.mesh") == ("NOERROR", ["127.0.0.1"])
        assert "coredns" not in daemon.children()


def test_a_required_coredns_that_is_missing(tmp_path: Path, ports: Ports) -> None:
    with running(tmp_path, ports, "--dns-mode=coredns", coredns="no-such-coredns") as daemon:
        assert daemon.wait() == ExitCode.BINARY_NOT_FOUND


def test_a_coredns_configured_by_path_must_exist(tmp_path: Path, ports: Ports) -> None:
    with running(tmp_path, ports, coredns=str(tmp_path / "none")) as daemon:
        assert daemon.wait() == ExitCode.BINARY_NOT_FOUND
        assert "none is not there" in daemon.output().splitlines()[-1]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (".:{{ .CoreDNSPort }} {\n    no-such-plugin\n}\n", ".template:2: Corefile template: rejected by CoreDNS: "),
        (".:{{ .NoSuchField }} {}\n", ".template:1: Corefile template: {{ .NoSuchField }} is not supported"),
    ],
)
def test_a_template_that_is_wrong_is_refused(tmp_path: Path, ports: Ports, template: str, text: str) -> None:
    file = tmp_path / "Corefile.template"
    file.write_text(template)
    arguments = ("--dns-coredns-config-template-path", str(file))
    with running(tmp_path, ports, *arguments, coredns=str(need_coredns())) as daemon:
        assert daemon.wait() == ExitCode.SETTINGS
        assert text in daemon.output().splitlines()[-1]


def test_a_template_of_the_user_s_is_used(tmp_path: Path, ports: Ports) -> None:
    file = tmp_path / "Corefile.template"
    file.write_text(
        ".:{{ .CoreDNSPort }} {\n    bind 127.0.0.1\n    hosts {\n        127.0.0.9 own.mesh\n"
        "        fallthrough\n    }\n    forward . 127.0.0.1:{{ .EnvoyDNSPort }}\n}\n"
    )
    arguments = ("--dns-coredns-config-template-path", str(file))
    with running(tmp_path, ports, *arguments, coredns=str(need_coredns())) as daemon:
        daemon.wait_ready()
        assert query(ports.dns, "own.mesh") == ("NOERROR", ["127.0.0.9"])
        assert query(ports.dns, "backend.mesh") == ("NOERROR", ["127.0.0.1"])


def own_names(**hosts: str) -> str:
    """A template with its own names and no upstream."""
    lines = "".join(f"        {address} {name}.mesh\n" for name, address in hosts.items())
    return f".:{{{{ .CoreDNSPort }}}} {{\n    bind 127.0.0.1\n    hosts {{\n{lines}    }}\n}}\n"


def test_a_reload_takes_a_changed_template_unless_it_is_broken(tmp_path: Path, ports: Ports) -> None:
    file = tmp_path / "Corefile.template"
    file.write_text(own_names(first="127.0.0.8"))
    arguments = ("--dns-coredns-config-template-path", str(file))
    with running(tmp_path, ports, *arguments, coredns=str(need_coredns())) as daemon:
        daemon.wait_ready()
        coredns = daemon.children()["coredns"]
        reloads = {"XDG_RUNTIME_DIR": daemon.environment["XDG_RUNTIME_DIR"]}
        file.write_text(own_names(second="127.0.0.9"))
        assert kumadp("reload", environment=reloads).returncode == 0
        poll(lambda: query(ports.dns, "second.mesh") == ("NOERROR", ["127.0.0.9"]), what="the new name")
        file.write_text(own_names(third="127.0.0.10").replace("hosts", "no-such"))
        assert kumadp("reload", environment=reloads).returncode == 0
        (warning,) = query_status(control_socket_path("web", daemon.environment))["concerns"]
        assert "Corefile.template:3: Corefile template: rejected by CoreDNS: " in warning
        assert "Unknown directive 'no-such'" in warning
        assert query(ports.dns, "second.mesh") == ("NOERROR", ["127.0.0.9"])
        assert daemon.children()["coredns"].pid == coredns.pid


@contextlib.contextmanager
def with_control_plane(tmp_path: Path, ports: Ports, *more: str, template: str | None) -> Iterator[Daemon]:
    with workload("web") as app:
        answer = bootstrap_answer(static_bootstrap(ports, app.port), template)
        with ScriptedControlPlane(answer) as plane:
            ca = plane.write_ca(tmp_path / "ca.crt")
            arguments = (f"--cp-address={plane.url}", f"--ca-cert-file={ca}", "--name=web", "--mesh=default")
            with run_kumadp(tmp_path, ports, *arguments, "--drain-time=1s", *more, dns=True) as daemon:
                daemon.wait_ready()
                assert get(ports.inbound) == (200, "web")
                yield daemon


def test_the_template_of_the_control_plane_is_used_unless_configured(tmp_path: Path, ports: Ports) -> None:
    coredns = f"--dns-coredns-path={need_coredns()}"
    theirs = own_names(theirs="127.0.0.8")
    with with_control_plane(tmp_path, ports, coredns, template=theirs):
        assert query(ports.dns, "theirs.mesh") == ("NOERROR", ["127.0.0.8"])
    file = tmp_path / "Corefile.template"
    file.write_text(own_names(mine="127.0.0.9"))
    user = f"--dns-coredns-config-template-path={file}"
    with with_control_plane(tmp_path, ports, coredns, user, template=theirs):
        assert query(ports.dns, "mine.mesh") == ("NOERROR", ["127.0.0.9"])
        assert query(ports.dns, "theirs.mesh")[1] == []


def test_readiness_does_not_wait_for_names_once_envoy_serves_without_any(tmp_path: Path, ports: Ports) -> None:
    """Here the control plane has the Dataplane, so what it sends can only be seen."""
    with with_control_plane(tmp_path, ports, "--dns-mode=embedded", template=None) as daemon:
        daemon.wait_ready()
        assert daemon.output().count("the control plane sends no names") == 1
        assert "no names have come" not in daemon.output()
        assert query(ports.dns, "nobody.mesh")[0] == "SERVFAIL"


def test_the_fallback_answers_permanently_if_coredns_fails_permanently(tmp_path: Path, ports: Ports) -> None:
    coredns = str(need_coredns())
    with running(tmp_path, ports, "--coredns-restart-budget=0", coredns=coredns) as daemon:
        daemon.wait_ready()
        where = control_socket_path("web", daemon.environment)
        assert query_status(where)["dns"]["answered_by"] == "CoreDNS"
        daemon.children()["coredns"].kill()
        story = poll(lambda: next(iter(query_status(where)["concerns"]), None), what="the story in the status")
        assert story.startswith("coredns: coredns ended with signal 9 (KILL) after ")
        assert story.endswith("; the embedded resolver answers in its place")
        assert query_status(where)["children"]["coredns"]["state"] == "FATAL"
        assert query_status(where)["dns"]["answered_by"] == "the embedded resolver"
        for tcp in (False, True):
            assert query(ports.dns, "backend.mesh", tcp=tcp) == ("NOERROR", ["127.0.0.1"])
            assert query(ports.dns, "BackEnd.Mesh", tcp=tcp) == ("NOERROR", ["127.0.0.1"])
            assert query(ports.dns, "nobody.mesh", tcp=tcp) == ("NXDOMAIN", [])
        assert get(ports.outbound) == (200, "backend")
        assert get(ports.readiness, "/ready") == (200, "READY")
        daemon.terminate()
        assert daemon.wait() == ExitCode.OK


@pytest.mark.parametrize("real", [False, True])
def test_the_fallback_answers_if_coredns_is_too_old(tmp_path: Path, ports: Ports, real: bool) -> None:
    coredns = tmp_path / "coredns"
    if real:
        coredns = need_other_coredns("OLD")
    else:
        coredns.write_text("#!/bin/sh\necho \"$2:3 - Error during parsing: unknown property 'next'\"\nexit 1\n")
        coredns.chmod(0o755)
    with running(tmp_path, ports, coredns=str(coredns)) as daemon:
        daemon.wait_ready()
        (warning,) = query_status(control_socket_path("web", daemon.environment))["concerns"]
        assert "unknown property 'next'" in warning
        assert warning.endswith("(CoreDNS 1.11.4 and later can); the embedded resolver answers in its place")
        assert warning.removeprefix("coredns: ") in daemon.output()
        assert query(ports.dns, "backend.mesh") == ("NOERROR", ["127.0.0.1"])
        assert "coredns" not in daemon.children()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
def test_no_query_is_lost_after_one_retry_when_coredns_is_killed(
    tmp_path: Path, ports: Ports, how: signal.Signals
) -> None:
    with running(tmp_path, ports, coredns=str(need_coredns())) as daemon:
        daemon.wait_ready()
        with dns_load(ports.dns, "backend.mesh", rate=2000, seconds=8) as load:
            for _ in range(3):
                coredns = daemon.children()["coredns"]
                coredns.send_signal(how)
                poll(lambda: daemon.children().get("coredns", coredns).pid != coredns.pid, what="another CoreDNS")  # noqa: B023
                # Longer than a query waits before its retry: otherwise that could meet the next end of CoreDNS.
                time.sleep(1.5)
            counts = load.counts()
        assert (counts.sent, counts.answered, counts.lost, counts.wrong) == (16_000, 16_000, 0, 0)


def test_sigkill_of_kumadp_leaves_no_coredns(tmp_path: Path, ports: Ports) -> None:
    with running(tmp_path, ports, coredns=str(need_coredns())) as daemon:
        daemon.wait_ready()
        children = daemon.children()
        assert set(children) == {"coredns", "envoy"}
        daemon.process.kill()
        daemon.wait()
        for name, child in children.items():
            poll(lambda: not child.is_running() or child.status() == "zombie", what=f"{name} gone")  # noqa: B023


def test_dns_can_be_disabled(tmp_path: Path, ports: Ports) -> None:
    with running(tmp_path, ports, "--dns-enabled=false", coredns=str(need_coredns())) as daemon:
        daemon.wait_ready()
        assert "coredns" not in daemon.children()
        assert query(ports.dns, "backend.mesh") == ("", [])
        assert query(ports.envoy_dns, "backend.mesh") == ("", [])
