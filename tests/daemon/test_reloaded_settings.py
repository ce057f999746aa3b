"""Options that a reload applies are in force afterwards, each where it is used."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.bootstrap.prepare import Prepared
from kumadp.core.context import Context, Inputs
from kumadp.core.events import Rejected, Requested
from kumadp.daemon.application import ApplicationPart
from kumadp.daemon.drain import Announce, Wait
from kumadp.daemon.file_changes import FileChangesPart
from kumadp.daemon.run import Daemon
from kumadp.envoy.launch import launch_argv
from kumadp.errors import ControlPlaneRefused
from kumadp.probes.targets import ProbeTargets
from kumadp.resources.load import load_resource
from kumadp.settings.model import Settings
from kumadp.settings.reload import reloaded

DATAPLANE = """\
type: Dataplane
mesh: default
name: web
networking:
  address: 192.0.2.1
  inbound: [{port: 80, servicePort: 8080, tags: {kuma.io/service: web}}]
"""


def context_of(*command_line: str, **settings: Any) -> Context:
    resource = load_resource(DATAPLANE, "web.yaml")
    environ = {"PATH": "/usr/bin:/bin"}
    return Context(Inputs(Settings(**settings), resource, environ, command_line=command_line))


def reload(context: Context, **changes: Any) -> None:
    """Apply changed settings as `kumadp.daemon.reload` does."""
    context.settings, restart = reloaded(context.settings, replace(context.settings, **changes))
    assert restart == ()


@pytest.mark.parametrize(
    ("field", "value", "arguments"),
    [
        ("concurrency", 3, ("--concurrency", "3")),
        ("drain_time", 17.0, ("--drain-time-s", "17")),
        ("envoy_log_level", "trace", ("--log-level", "trace")),
        ("envoy_component_log_level", "http:debug", ("--component-log-level", "http:debug")),
        ("envoy_args", ("--disable-extensions", "a"), ("--disable-extensions", "a")),
    ],
)
def test_the_command_line_of_the_next_envoy(field: str, value: object, arguments: tuple[str, str]) -> None:
    context = context_of()
    prepared = Prepared(Path("/work/bootstrap.yaml"), TcpAdmin("127.0.0.1", 9901), None, dynamic=True)

    def argv() -> list[tuple[str, ...]]:
        words = launch_argv(context.settings, prepared, Path("/usr/bin/envoy"))
        return list(itertools.pairwise(words))

    assert arguments not in argv()
    reload(context, **{field: value})
    assert arguments in argv()


def test_the_drain() -> None:
    context = context_of()
    parts = SimpleNamespace(envoy=SimpleNamespace(inbound_drained=False), application=ApplicationPart(context))
    daemon: Any = SimpleNamespace(_context=context, _parts=parts, serves=True)
    assert Daemon.drain_steps(daemon, failed=False)[-1] == Wait(30.0, 5.0)
    reload(context, drain_time=20.0, min_drain_time=7.0, pre_drain_delay=3.0)
    first, *_, last = Daemon.drain_steps(daemon, failed=False)
    assert (first, last) == (Announce(3.0), Wait(20.0, 7.0))


async def test_the_grace_period_of_the_application() -> None:
    context = context_of("sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done", application_grace=600.0)
    application = ApplicationPart(context)
    context.settings = replace(context.settings, application_start="at-once")
    application.begin()
    assert application.runs
    reload(context, application_grace=0.2)
    async with asyncio.timeout(20):
        await application.end()
    assert application.state == "ended"


async def test_ports_of_the_probe_proxy() -> None:
    context = context_of()
    with contextlib.closing(ProbeTargets(context, (), lambda: (), lambda: None)) as targets:
        assert await targets(9999) is None
        reload(context, probe_proxy_ports=(9999,))
        assert await targets(9999) == "192.0.2.1"


async def test_what_a_changed_file_causes(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("1")
    (tmp_path / "new.yaml").write_text("2")
    context = context_of(on_file_change="report", dataplane_file=str(tmp_path / "old.yaml"))
    part = FileChangesPart(context)
    watch: Any = SimpleNamespace(follow=lambda: None)
    part._watch = watch
    await part._compare()
    assert context.events.empty()
    reload(context, on_file_change="reload", dataplane_file=str(tmp_path / "new.yaml"))
    await part._compare()
    event = context.events.get_nowait()
    assert isinstance(event, Requested)
    assert event.why == f"{tmp_path / 'new.yaml'} changed"


async def test_a_changed_token_is_used_at_once(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("1")
    called: list[str] = []
    part = FileChangesPart(context_of(token_path=str(token)), None, lambda: called.append("retry"))
    watch: Any = SimpleNamespace(follow=lambda: None)
    part._watch = watch
    await part._compare()
    await part._compare()
    assert called == ["retry"]
    token.write_text("2")
    await part._compare()
    assert called == ["retry", "retry"]


def test_files_that_are_watched() -> None:
    context = context_of(token_path="/old/token")
    part = FileChangesPart(context, None)
    assert part._paths() == (Path("/old/token"),)
    reload(context, token_path="/new/token", ca_cert_file="/new/ca.crt")
    assert part._paths() == (Path("/new/token"), Path("/new/ca.crt"))


async def test_what_a_rejection_causes() -> None:
    context = context_of(on_control_plane_refusal="serve")
    context.reject(ControlPlaneRefused("the token is invalid"))
    assert context.events.empty()
    reload(context, on_control_plane_refusal="exit")
    context.reject(ControlPlaneRefused("the token is invalid"))
    assert isinstance(context.events.get_nowait(), Rejected)
