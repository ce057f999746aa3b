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
from kumadp.controlplane.bootstrap_condition import BootstrapCondition
from kumadp.controlplane.bootstrap_watch import BootstrapWatch, _reasons, comparable
from kumadp.core.context import Context, Inputs
from kumadp.core.status import Status
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
    reasons: list[ControlPlaneUnavailable] = []
    with ScriptedControlPlane(Answer(500), tls=False) as plane:
        client = client_of(plane, tmp_path, name="ingress-01", mesh="default", proxy_type="ingress")
        with pytest.raises(ControlPlaneUnavailable) as given_up:
            await client.fetch(reasons.append, 0.05)
    for text in (str(given_up.value), *map(str, reasons)):
        assert "HTTP 500" in text
        assert "networking.listeners: [{type: ZoneIngress" in text


class Watched:
    """What a watch observes: the client's bootstrap; ``seen`` are the texts of the warning."""

    def __init__(self, client: KumaClient, present: Fetched, **settings: Any) -> None:
        self.client = client
        self.context = Context(Inputs(Settings(name="web", mesh="default", **settings), RESOURCE, {}))
        self.context.bootstrap = Prepared(Path("bootstrap.yaml"), TcpAdmin("127.0.0.1", 9901), None, True, present)
        self.condition = BootstrapCondition(self.context.status)
        self.seen: list[str] = []
        self.context.status.changed.append(self._changed)
        self.first_request: asyncio.Task[Fetched] | None = None
        self.confirmed = 0
        self.watch = BootstrapWatch(self.context, self.condition, cast("WatchObserver", self))

    def _changed(self) -> None:
        self.seen.append(self.context.status.warnings.get("bootstrap", ""))

    def take_first_request(self) -> asyncio.Task[Fetched] | None:
        request, self.first_request = self.first_request, None
        return request

    async def fetch(self, within: float | None) -> Fetched:
        return await self.client.fetch(self.condition.note_failure, within)

    async def on_confirmed(self) -> None:
        self.confirmed += 1

    async def until_confirmed(self) -> None:
        """Run the watch until the control plane stands by the present bootstrap."""
        running = asyncio.create_task(self.watch.run(lambda: None))

        async def confirmed() -> bool:
            return self.confirmed > 0

        try:
            await poll_async(confirmed, what="an answer")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def answered(client: KumaClient) -> Fetched:
    return await client.fetch(lambda error: pytest.fail(str(error)), 10.0)


async def test_a_check_that_is_rejected_is_a_warning_until_one_is_answered(tmp_path: Path) -> None:
    with ScriptedControlPlane(OLD, REJECTED, REJECTED, OLD, tls=False) as plane:
        client = client_of(plane, tmp_path)
        watched = Watched(client, await answered(client), bootstrap_check_interval=0.05)
        await watched.until_confirmed()
    rejection, recovered = watched.seen
    assert "dp.yaml:1: networking.outbound[0]: " in rejection
    assert rejection.endswith("; what runs keeps running")
    assert recovered == ""


async def test_a_first_answer_that_rejects_never_ends_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kumadp.controlplane.bootstrap_watch.REFUSED_PAUSE", 0.01)
    monkeypatch.setattr("kumadp.core.grace_period.ESTABLISHED_GRACE_PERIOD", 0.0)
    with ScriptedControlPlane(OLD, REJECTED, REJECTED, REJECTED, OLD, tls=False) as plane:
        client = client_of(plane, tmp_path)
        watched = Watched(client, await answered(client), bootstrap_check_interval=0.0)
        watched.first_request = asyncio.create_task(watched.fetch(None))
        await watched.until_confirmed()
        assert len(plane.requests) == 5
    assert [bool(text) for text in watched.seen] == [True, False]
    assert watched.context.events.empty()
    assert watched.first_request is None


async def test_a_first_answer_that_fails_with_a_hint_is_in_the_status(tmp_path: Path) -> None:
    with ScriptedControlPlane(OLD, Answer(500), Answer(500), OLD, tls=False) as plane:
        client = client_of(plane, tmp_path, name="ingress-01", mesh="default", proxy_type="ingress")
        watched = Watched(client, await answered(client), bootstrap_check_interval=0.0)
        watched.first_request = asyncio.create_task(watched.fetch(None))
        await watched.until_confirmed()
    rejection, recovered = watched.seen
    assert "networking.listeners: [{type: ZoneIngress" in rejection
    assert recovered == ""


def test_a_rejection_does_not_hide_a_change() -> None:
    status = Status("web", "control plane", "default")
    condition = BootstrapCondition(status)
    condition.note_change("it has changed")
    condition.note_rejection(ControlPlaneRefused("no such mesh", "create it"))
    assert status.warnings == {"bootstrap": "no such mesh (create it); what runs keeps running; it has changed"}
    condition.note_answer()
    assert status.warnings == {"bootstrap": "it has changed"}
    condition.note_change("")
    assert status.warnings == {}


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
