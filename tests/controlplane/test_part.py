"""What the part requests, and for which Envoy: at a start without an answer, and in a reload."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kumadp.bootstrap.parser import parse_bootstrap
from kumadp.bootstrap.prepare import Fetched
from kumadp.controlplane.bootstrap_client import Sidecar, Versions
from kumadp.controlplane.part import ControlPlanePart
from kumadp.core.context import Context, Inputs
from kumadp.errors import ControlPlaneRefused
from kumadp.host.work_dir import WorkDir
from kumadp.resources.load import load_resource
from kumadp.settings.model import Settings
from tests.support.first_bootstrap import start_with_bootstrap
from tests.support.scripted_control_plane import CAPTURES, TOKEN, Answer, ScriptedControlPlane, captured_answer

if TYPE_CHECKING:
    from pathlib import Path

    from kumadp.resources.resource import Resource

GOOD = captured_answer("kuma-2.14.3/dataplane")
LAST_GOOD = Fetched(parse_bootstrap((CAPTURES / "kuma-2.14.3/dataplane/bootstrap.yaml").read_bytes()), None, 1.0)
REJECTED = Answer(422, b"networking.outbound[0].backendRef: must be defined")
VERSIONS = Versions("1.40.0")


class Relay:
    """A relay whose disk has a configuration, or none."""

    path: Path | None = None

    def __init__(self, last_good: Fetched | None) -> None:
        self.last_good = last_good

    def preload(self) -> None:
        pass

    async def load(self, envoy_version: str) -> Fetched | None:
        del envoy_version
        return self.last_good

    async def confirm(self) -> None:
        """Nothing is on disk."""


def dataplane(service: str) -> Resource:
    return load_resource(
        "{type: Dataplane, mesh: default, name: web, networking: {address: 127.0.0.1, "
        f"inbound: [{{port: 8080, tags: {{kuma.io/service: {service}}}}}]}}}}",
        "dp.yaml",
    )


def part_of(plane: ScriptedControlPlane, folder: Path, last_good: Fetched | None = None) -> ControlPlanePart:
    settings = Settings(cp_address=plane.url, token=TOKEN, retry_backoff=0.01)
    context = Context(Inputs(settings, dataplane("web"), {}))
    context.work = WorkDir(folder, folder, folder, temporary=False)
    part = ControlPlanePart(context, lambda: VERSIONS, Sidecar, tuple)
    part.connect(Relay(last_good))
    return part


def services(plane: ScriptedControlPlane) -> list[str]:
    """The service of each Dataplane that was reported."""
    resources = [json.loads(request["dataplaneResource"]) for request in plane.requests]
    return [resource["networking"]["inbound"][0]["tags"]["kuma.io/service"] for resource in resources]


async def test_a_rejected_dataplane_starts_with_the_last_good_configuration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ScriptedControlPlane(REJECTED, GOOD, tls=False) as plane:
        part = part_of(plane, tmp_path, LAST_GOOD)
        await start_with_bootstrap(part)
        assert part._context.bootstrap.fetched is LAST_GOOD
        assert "the control plane rejects the request: starting with the last good configuration" in caplog.text
        assert part.pending
        request = part.take_first_request()
        assert request is not None
        with pytest.raises(ControlPlaneRefused, match="backendRef"):
            await request
        assert part.take_first_request() is None
        assert part.pending
        assert await part.query_bootstrap(renewed=False) is not None
        assert not part.pending


@pytest.mark.parametrize("status", [401, 403])
async def test_a_rejected_token_ends_the_start(tmp_path: Path, status: int) -> None:
    with ScriptedControlPlane(Answer(status), tls=False) as plane:
        part = part_of(plane, tmp_path, LAST_GOOD)
        with pytest.raises(ControlPlaneRefused, match=f"HTTP {status}"):
            await start_with_bootstrap(part)


async def test_without_a_last_good_configuration_a_rejection_ends_the_start(tmp_path: Path) -> None:
    with ScriptedControlPlane(REJECTED, tls=False) as plane, pytest.raises(ControlPlaneRefused, match="HTTP 422"):
        await start_with_bootstrap(part_of(plane, tmp_path))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(REJECTED, "backendRef: must be defined"), (Answer(503, b"starting"), "HTTP 503: starting")],
)
async def test_a_query_that_fails_is_one_warning_until_one_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: Answer, reason: str
) -> None:
    with ScriptedControlPlane(GOOD, answer, answer, GOOD, tls=False) as plane:
        part = part_of(plane, tmp_path)
        await start_with_bootstrap(part)
        assert not part.pending
        for _ in range(2):
            assert await part.query_bootstrap(renewed=False) is None
            assert reason in part._context.status.warnings["bootstrap"]
        assert caplog.text.count(reason) == 1
        assert await part.query_bootstrap(renewed=False) is not None
        assert part._context.status.warnings == {}


async def test_after_a_rejected_reload_the_dataplane_that_runs_is_reported(tmp_path: Path) -> None:
    with ScriptedControlPlane(GOOD, REJECTED, GOOD, GOOD, tls=False) as plane:
        part = part_of(plane, tmp_path)
        await start_with_bootstrap(part)
        with pytest.raises(ControlPlaneRefused):
            await part.renew(dataplane("other"), VERSIONS, [])
        await part.query_bootstrap(renewed=False)
        await part.query_bootstrap(renewed=True)
        part.go_back()
        await part.query_bootstrap(renewed=True)
        assert services(plane) == ["web", "other", "web", "other", "web"]


async def test_a_reload_that_succeeds_is_reported_from_then_on(tmp_path: Path) -> None:
    with ScriptedControlPlane(GOOD, tls=False) as plane:
        part = part_of(plane, tmp_path)
        await start_with_bootstrap(part)
        await part.renew(dataplane("other"), VERSIONS, [])
        await part.renewed()
        await part.query_bootstrap(renewed=False)
        assert services(plane) == ["web", "other", "other"]


async def test_a_failed_reload_applies_the_way_to_the_control_plane(tmp_path: Path) -> None:
    with ScriptedControlPlane(GOOD, tls=False) as plane:
        part = part_of(plane, tmp_path)
        await start_with_bootstrap(part)
        part._context.settings = Settings(cp_address=plane.url, token=TOKEN, host_ip="192.0.2.1", retry_backoff=0.5)
        await part.renew(None, VERSIONS, [])
        part.go_back()
        assert (part.client.settings.retry_backoff, part.client.settings.host_ip) == (0.5, "")
