"""What a control plane rejects after an upgrade: reported with what to write instead, and what runs keeps running."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from kumadp.bootstrap.admin_address import TcpAdmin
from kumadp.bootstrap.comparison import differences
from kumadp.bootstrap.generation import Generation
from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.prepare import Prepared
from kumadp.controlplane.bootstrap_client import KumaClient, Sidecar, Versions
from kumadp.controlplane.bootstrap_watch import BootstrapWatch, _reasons, comparable
from kumadp.core.context import Context, Inputs
from kumadp.errors import ControlPlaneRefused, ControlPlaneUnavailable, ExitCode
from kumadp.host.work_dir import WorkDir
from kumadp.resources.load import load_resource
from kumadp.settings.model import Settings
from tests.support.poll import poll_async
from tests.support.scripted_control_plane import CAPTURES, TOKEN, Answer, ScriptedControlPlane, captured_answer

if TYPE_CHECKING:
    from kumadp.bootstrap.prepare import Fetched
    from kumadp.controlplane.bootstrap_watch import WatchObserver

RESOURCE = load_resource(
    "{type: Dataplane, mesh: default, name: web, networking: {address: 127.0.0.1,"
    " inbound: [{port: 8080, tags: {kuma.io/service: web}}],"
    " outbound: [{port: 20001, tags: {kuma.io/service: backend}}]}}",
    "dp.yaml",
)
REJECTED = Answer(422, b"networking.outbound[0].backendRef: must be defined")
OLD = captured_answer("kuma-2.14.3/dataplane")


def client_of(plane: ScriptedControlPlane, folder: Path, **settings: Any) -> KumaClient:
    chosen = Settings(cp_address=plane.url, token=TOKEN, retry_backoff=0.01, **settings)
    work = WorkDir(folder, folder, folder, temporary=False)
    resource = RESOURCE if "proxy_type" not in settings else None
    return KumaClient(chosen, resource, work, Versions("1.40.0"), Sidecar())


async def test_at_start_it_ends_with_the_place_in_the_file(tmp_path: Path) -> None:
    with ScriptedControlPlane(REJECTED, tls=False) as plane, pytest.raises(ControlPlaneRefused) as refused:
        await client_of(plane, tmp_path).fetch(lambda _reason: None, None)
    assert refused.value.exit_code is ExitCode.CONTROL_PLANE_REFUSED
    assert "HTTP 422: networking.outbound[0].backendRef: must be defined (dp.yaml:1: " in str(refused.value)
    assert "write backendRef: {kind: MeshService" in str(refused.value)


async def test_a_zone_proxy_of_kuma_2_is_retried_with_what_kuma_3_wants(tmp_path: Path) -> None:
    reasons: list[str] = []
    with ScriptedControlPlane(Answer(500), tls=False) as plane:
        client = client_of(plane, tmp_path, name="ingress-01", mesh="default", proxy_type="ingress")
        with pytest.raises(ControlPlaneUnavailable) as given_up:
            await client.fetch(reasons.append, 0.05)
    for text in (str(given_up.value), *reasons):
        assert "HTTP 500" in text
        assert "networking.listeners: [{type: ZoneIngress" in text


class Observer:
    first_request = None

    def __init__(self) -> None:
        self.confirmed = 0

    async def on_confirmed(self) -> None:
        self.confirmed += 1

    def on_refused(self, error: ControlPlaneRefused) -> None:
        pytest.fail(str(error))


async def test_a_check_that_is_rejected_is_a_warning_until_one_is_answered(tmp_path: Path) -> None:
    with ScriptedControlPlane(OLD, REJECTED, REJECTED, OLD, tls=False) as plane:
        client, observer = client_of(plane, tmp_path), Observer()
        fetched: Fetched = await client.fetch(pytest.fail, 10.0)
        context = Context(Inputs(Settings(name="web", mesh="default", bootstrap_check_interval=0.05), RESOURCE, {}))
        context.bootstrap = Prepared(Path("bootstrap.yaml"), TcpAdmin("127.0.0.1", 9901), None, True, fetched)
        seen: list[str] = []
        context.status.changed.append(lambda: seen.append(context.status.warnings.get("bootstrap", "")))
        watch = asyncio.create_task(BootstrapWatch(client, context, cast("WatchObserver", observer)).run(lambda: None))

        async def confirmed() -> bool:
            return observer.confirmed > 0

        try:
            await poll_async(confirmed, what="an answer")
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
    rejection, recovered = seen
    assert "dp.yaml:1: networking.outbound[0]: " in rejection
    assert rejection.endswith("; what runs keeps running")
    assert recovered == ""


def test_a_bootstrap_of_another_generation_is_one_reason() -> None:
    old, new = (
        parse_bootstrap((CAPTURES / name / "bootstrap.yaml").read_bytes())
        for name in ("kuma-2.14.3/dataplane", "kuma-3.0-dev/full")
    )
    changes = differences(comparable(old), comparable(new))
    assert len(changes) > 5
    assert _reasons(changes, Generation.KUMA_2, Generation.KUMA_3) == (
        "it is of Kuma 3 now, and Envoy runs with that of Kuma 2",
    )
    assert len(_reasons(changes, Generation.KUMA_2, Generation.KUMA_2)) == len(changes)
    assert _reasons((), Generation.KUMA_3, Generation.KUMA_2) == ()
