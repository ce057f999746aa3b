"""The control plane would give another bootstrap by now: it is told, with what differs, or applied, as set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kumadp.errors import ExitCode
from tests.support.command import kumadp
from tests.support.daemon import get
from tests.support.poll import poll
from tests.support.rig import NAME, Rig, rig
from tests.support.xds.plane import XdsControlPlane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.xds.resources import Tree

pytestmark = pytest.mark.process

OFTEN = "--bootstrap-check-interval=500ms"


@pytest.fixture
def plane() -> Iterator[XdsControlPlane]:
    with XdsControlPlane() as made:
        made.faults.linger = 0.0
        yield made


@pytest.fixture
def alone(tmp_path: Path, plane: XdsControlPlane) -> Iterator[Rig]:
    with rig(tmp_path, plane) as made:
        yield made


def flush_every(interval: str) -> Callable[[Tree], None]:
    def edit(bootstrap: Tree) -> None:
        bootstrap["statsFlushInterval"] = interval

    return edit


def test_what_differs_is_told_until_it_is_taken_or_gone(alone: Rig, plane: XdsControlPlane) -> None:
    plane.edit = flush_every("5s")
    with alone.run(OFTEN) as daemon:
        alone.wait_ready(daemon)
        envoy = daemon.envoy()
        plane.edit = flush_every("7s")
        found = poll(lambda: alone.status(daemon).get("restart_required"), what="a restart required")
        assert found == ['statsFlushInterval: changed from "5s" to "7s"']
        assert any("a restart is required" in concern for concern in alone.status(daemon)["concerns"])
        # Another spelling of what Envoy has is nothing.
        plane.edit = flush_every("5.000s")
        poll(lambda: "restart_required" not in alone.status(daemon), what="nothing required any more")
        plane.edit = flush_every("7s")
        poll(lambda: alone.status(daemon).get("restart_required"), what="a restart required again")
        assert envoy.is_running()
        assert kumadp("reload", f"--name={NAME}", environment=daemon.environment).returncode == ExitCode.OK
        status = alone.status(daemon)
        assert (status["epoch"], status.get("restart_required"), status["concerns"]) == (1, None, [])
        assert '"stats_flush_interval": "7s"' in get(alone.ports.admin, "/config_dump")[1]


def test_it_is_applied_at_once_where_that_is_set(alone: Rig, plane: XdsControlPlane) -> None:
    plane.edit = flush_every("5s")
    with alone.run(OFTEN, "--on-bootstrap-change=reload") as daemon:
        alone.wait_ready(daemon)
        plane.edit = flush_every("7s")
        poll(lambda: alone.status(daemon)["epoch"] == 1, what="the next epoch")
        poll(lambda: "restart_required" not in alone.status(daemon), what="nothing required any more")
        assert '"stats_flush_interval": "7s"' in get(alone.ports.admin, "/config_dump")[1]
        assert alone.serves()


@pytest.mark.parametrize("relay", ["on", "off"])
def test_delta_is_not_announced_and_that_is_one_line(alone: Rig, relay: str) -> None:
    variant = {"KUMA_DATAPLANE_RUNTIME_ENVOY_XDS_TRANSPORT_PROTOCOL_VARIANT": "DELTA_GRPC"}
    with alone.run(f"--xds-relay={relay}", environment=variant) as daemon:
        daemon.wait_ready()
        alone.wait_traffic()
        told = [line for line in daemon.output().splitlines() if "DELTA_GRPC" in line or "PROTOCOL_VARIANT" in line]
        (line,) = [line for line in told if "settings: " not in line]
        assert "DELTA_GRPC is not announced" in line
        assert '"DELTA_GRPC"' not in get(alone.ports.admin, "/config_dump")[1]


def test_without_the_relay_no_reload_is_done(alone: Rig) -> None:
    with alone.run("--xds-relay=off") as daemon:
        daemon.wait_ready()
        envoy = daemon.envoy()
        refused = kumadp("reload", f"--name={NAME}", environment=daemon.environment)
        assert refused.returncode == ExitCode.REFUSED
        assert "hot restart is off" in refused.stderr
        assert envoy.is_running()
        alone.wait_traffic()
